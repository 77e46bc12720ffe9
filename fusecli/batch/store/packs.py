"""Results packed into safetensors files keyed by id, each whole or not at all.

A pack grows under a temporary name, numbers first: room for its header is left in front. What
has been brought to the disk is written into the journal with its place in the pack, so that a
run that was stopped continues the pack where it was, to the same bytes. With its last tensor it
gets its header, and then its name.

Source of the format: the format section of the safetensors README. The index is that of sharded
checkpoints on the Hugging Face Hub (`weight_map`, `metadata.total_size`).
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import time
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from fusecli.batch.store.encode import bytes_of
from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.journal import Entry, Shapes, fingerprint, read_entries
from fusecli.batch.worker import Result
from fusecli.errors import OutputError
from fusecli.features.atomic import StagedFile, not_written, sync_folder, write_all
from fusecli.features.dtypes import storage_type
from fusecli.features.formats.safetensors import (
    METADATA_KEY,
    header_entry,
    promised_size,
    with_length,
)
from fusecli.pairs.open import Pair

INDEX = "fused.safetensors.index.json"
_NAME = re.compile(r"fused(?:-\d+-of-\d+)?-(\d{5,})\.safetensors")
_EVERY_S = 0.5
_LARGEST_ROOM = 8 << 20  # of a header: a longer one takes every reader long to parse
_SMALLEST_ROOM = 4 << 10
_COPIED = 16 << 20  # bytes at once


class PackSink:
    """Writes results into packs, in the order in which they come.

    Args:
        folder: the output folder, begun.
        size: bytes of numbers from which on a pack is full.
        dtype: of the rows: "float32", "float16" or "bfloat16".
        metadata: of the files.
    """

    def __init__(self, folder: OutputFolder, size: int, dtype: str, metadata: dict[str, Any]):
        self._folder, self._size = folder, size
        self._dtype = dtype
        self._prefix = f"fused{folder.suffix}-"
        room = min(_LARGEST_ROOM, max(_SMALLEST_ROOM, size // 64))
        self._room = room // 4096 * 4096
        self._first = json.dumps({METADATA_KEY: {"fusecli": json.dumps(metadata)}}).encode()[:-1]
        self._pack: _Pack | None = None
        self._waiting: list[Entry] = []  # for the disk
        self._brought = time.monotonic()
        self._known: dict[str, bool] = {}
        self._number = self._last_number()
        self._clear(self._continue())

    def put(self, results: list[Result]) -> None:
        """Take results.

        Raises:
            OutputError: the folder or the disk does not take them.
        """
        for result in results:
            pair = result.pair
            if result.tensors is not None and pair.id == METADATA_KEY:
                result.tensors = None
                result.error = f"{METADATA_KEY} is no possible name in a safetensors file"
            if result.tensors is None:
                self._waiting.append(Entry(pair.id, None, None, result.error, result.stamps))
                continue
            shapes = result.shapes
            pack = self._pack_for(pair.id, shapes, result.nbytes)
            try:
                at = pack.append(pair.id, shapes, [bytes_of(t) for t in result.tensors.values()])
            except OSError as error:
                raise self._failed(pack, error) from None
            self._waiting.append(Entry(pair.id, pack.name, shapes, None, result.stamps, at))
        if time.monotonic() - self._brought > _EVERY_S:
            self._bring()

    def there(self, pair: Pair, size: int) -> bool:
        """What is not there was told when the journals were read."""
        return True

    def withdraw(self, pair: Pair) -> None:
        """Nothing: packs are not changed, and the index leaves out what failed since."""

    def finish(self) -> None:
        """Close the last pack.

        Raises:
            OutputError: the folder or the disk does not take it.
        """
        self._bring()
        self._close()

    def abandon(self) -> None:
        """Leave a pack under way as it is: the next run goes on with it."""
        if self._pack is not None:
            self._pack.leave()
            self._pack = None

    def _pack_for(self, id: str, shapes: Shapes, nbytes: int) -> _Pack:
        pack = self._pack
        if pack is not None:
            entry = len(pack.entries(id, shapes))
            # A tensor that was made again, because its inputs changed, needs another file.
            full = pack.end + nbytes > self._size or id in pack.earlier
            if full or 8 + len(self._first) + pack.header + entry + 1 > self._room:
                self._bring()
                self._close()
        if self._pack is None:
            self._number += 1
            name = f"{self._prefix}{self._number:05d}.safetensors"
            try:
                self._pack = _Pack(name, self._staged(name), self._room, self._dtype)
            except OSError as error:
                raise self._folder.failed(error) from None
        return self._pack

    def _bring(self) -> None:
        """To the disk, and then into the journal."""
        assert self._folder.journal is not None
        if self._pack is not None:
            try:
                self._pack.sync()
            except OSError as error:
                raise self._failed(self._pack, error) from None
        self._folder.journal.append(self._waiting)
        self._waiting.clear()
        self._brought = time.monotonic()

    def _close(self) -> None:
        pack = self._pack
        if pack is None:
            return
        try:
            pack.close(self._first, self._folder.inside(pack.name))
        except OSError as error:
            raise self._failed(pack, error) from None
        self._pack = None

    def _staged(self, name: str) -> str:
        return os.path.join(self._folder.staging, name)

    def _failed(self, pack: _Pack, error: OSError) -> OutputError:
        return not_written(self._folder.inside(pack.name), error)

    def _last_number(self) -> int:
        pattern = os.path.join(glob.escape(self._folder.path), f"{self._prefix}*.safetensors")
        found = (os.path.basename(path) for path in glob.glob(pattern))
        return max((_number(name) for name in found if _NAME.fullmatch(name)), default=0)

    def _continue(self) -> str | None:
        """Take up a pack that an earlier run was stopped in; gives its name."""
        entries: list[Entry] = []
        staged = (name for name in os.listdir(self._folder.staging) if _NAME.fullmatch(name))
        name = max(staged, default=None)
        if name is None or os.path.exists(self._folder.inside(name)):
            return None
        there = os.path.getsize(self._staged(name)) - self._room
        for entry in read_entries(self._folder.journal_path):
            if entry.output == name and entry.at is not None and entry.at[1] <= there:
                entries.append(entry)
        self._number = _number(name)
        self._pack = _Pack(name, self._staged(name), self._room, self._dtype)
        for entry in entries:
            assert entry.at is not None
            assert entry.shapes is not None
            self._pack.take(entry.id, entry.shapes, entry.at)
        self._pack.cut()
        return name

    def _clear(self, kept: str | None) -> None:
        for name in os.listdir(self._folder.staging):
            if name != kept:
                os.unlink(self._staged(name))

    def counts(self, entry: Entry) -> bool:
        """Whether a tensor of an earlier run is there."""
        name = entry.output
        if name is None:
            return False
        if self._pack is not None and name == self._pack.name:
            return entry.at is not None and entry.at[1] <= self._pack.end
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _is_whole(self._folder.inside(name))
            if name.startswith(self._prefix) and _NAME.fullmatch(name):
                # Lines of a pack that is gone must not be taken for those of the next.
                self._number = max(self._number, _number(name))
        return known


class _Pack:
    """A pack under way.

    Args:
        name: it will have.
        path: it has.
        room: bytes left for the header.
        dtype: of the numbers.
    """

    def __init__(self, name: str, path: str, room: int, dtype: str) -> None:
        self.name, self._path, self._room = name, path, room
        self._dtype, self._itemsize = dtype, storage_type(dtype).itemsize
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._entries = bytearray()  # of the header, each behind a comma
        self.earlier: set[str] = set()  # ids that an earlier run put in
        self.end = 0
        os.lseek(self._descriptor, room, os.SEEK_SET)

    def append(self, id: str, shapes: Shapes, data: list[memoryview]) -> tuple[int, int]:
        """Write the tensors of a pair; gives where their numbers are."""
        at = self.end, self.end + write_all(self._descriptor, data)
        self._note(id, shapes, at)
        return at

    def take(self, id: str, shapes: Shapes, at: tuple[int, int]) -> None:
        """Note tensors whose numbers an earlier run wrote."""
        self.earlier.add(id)
        self._note(id, shapes, at)

    def _note(self, id: str, shapes: Shapes, at: tuple[int, int]) -> None:
        self._entries += self.entries(id, shapes)
        self.end = at[1]

    def entries(self, id: str, shapes: Shapes) -> bytes:
        """What the next tensors add to the header."""
        begin, made = self.end, b""
        for key, shape in keyed_by(id, shapes).items():
            end = begin + math.prod(shape) * self._itemsize
            made += b"," + header_entry(key, self._dtype, shape, begin, end)
            begin = end
        return made

    @property
    def header(self) -> int:
        """Bytes of the entries."""
        return len(self._entries)

    def cut(self) -> None:
        """Drop what nothing is known of, and go on behind the rest."""
        os.ftruncate(self._descriptor, self._room + self.end)
        os.lseek(self._descriptor, self._room + self.end, os.SEEK_SET)

    def sync(self) -> None:
        """Bring the numbers to the disk."""
        os.fsync(self._descriptor)

    def close(self, first: bytes, final: str) -> None:
        """Write the header and give the file its name."""
        header = first + self._entries + b"}"
        start = with_length(header)
        if len(start) > self._room or self.end < 16 * self._room:
            self._move(start, final)  # a small file is not to be mostly spaces
            return
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        write_all(self._descriptor, [with_length(header, self._room)])
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        os.replace(self._path, final)
        sync_folder(os.path.dirname(final))

    def _move(self, header: bytes, final: str) -> None:
        """The same with a copy in which the numbers follow the header at once."""
        path = f"{self._path}.moved"
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(target, [header])
            for start in range(0, self.end, _COPIED):
                length = min(_COPIED, self.end - start)
                write_all(target, [os.pread(self._descriptor, length, self._room + start)])
            os.fsync(target)
        finally:
            os.close(target)
        os.replace(path, final)
        sync_folder(os.path.dirname(final))
        os.close(self._descriptor)
        os.unlink(self._path)

    def leave(self) -> None:
        """Close the file as it is."""
        os.close(self._descriptor)


def keyed_by(id: str, shapes: Shapes) -> Shapes:
    """The tensors of a pair under their keys in a pack: the id, with the name if there are more."""
    if len(shapes) == 1:
        return {id: next(iter(shapes.values()))}
    return {f"{id}.{name}": shape for name, shape in shapes.items()}


def _number(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def _is_whole(path: str) -> bool:
    """Whether a pack is there and as long as its header says; its last tensor ends it."""
    try:
        with open(path, "rb") as file:
            return promised_size(file, 2 * _LARGEST_ROOM) == os.fstat(file.fileno()).st_size
    except OSError:
        return False


def remove_packs(folder: str) -> None:
    """Remove packs and their index, which journals that are forgotten belong to."""
    for name in os.listdir(folder):
        if _NAME.fullmatch(name) or name == INDEX:
            os.unlink(os.path.join(folder, name))


def write_index(folder: OutputFolder) -> str:
    """Write which pack holds which id, over all shards; holds 8 bytes a pair in memory.

    Args:
        folder: the output folder, which nobody else writes to.

    Returns:
        The index file's path.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder.inside(INDEX)
    total, comma = 0, b"\n"
    with StagedFile(path) as staged:
        staged.begin().write(b'{\n  "weight_map": {')
        for entry in _newest(folder):
            assert entry.at is not None
            total += entry.at[1] - entry.at[0]
            for key in keyed_by(entry.id, entry.shapes or {}):
                line = f"    {json.dumps(key)}: {json.dumps(entry.output)}"
                staged.write(comma + line.encode())
                comma = b",\n"
        end = f'\n  }},\n  "metadata": {{\n    "total_size": {total}\n  }}\n}}\n'
        staged.write(end.encode())
        staged.publish()
    return path


def _newest(folder: OutputFolder) -> Iterator[Entry]:
    """Of each id the last line, where it says what is there; in the order of the journals."""
    ids = array("Q")
    for path in folder.journals:
        ids.extend(fingerprint(entry.id) for entry in read_entries(path))
    values = np.frombuffer(ids, np.uint64) if ids else np.zeros(0, np.uint64)
    values.sort()
    repeated = set(values[1:][values[1:] == values[:-1]].tolist())
    last: dict[int, tuple[str, int]] = {}
    for path in folder.journals if repeated else []:
        for number, entry in enumerate(read_entries(path)):
            if (key := fingerprint(entry.id)) in repeated:
                last[key] = path, number
    there: dict[str, bool] = {}
    for path in sorted(folder.journals, key=lambda path: (len(path), path)):
        for number, entry in enumerate(read_entries(path)):
            if entry.output is None or entry.at is None:
                continue
            if repeated and last.get(fingerprint(entry.id), (path, number)) != (path, number):
                continue
            if entry.output not in there:
                there[entry.output] = _is_whole(folder.inside(entry.output))
            if there[entry.output]:
                yield entry
