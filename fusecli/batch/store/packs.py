"""Results packed into safetensors files keyed by id, each whole or not at all.

A pack grows under a temporary name, numbers first: room for its header is left in front. Numbers
that are on the disk are noted in the journal with their place in the pack. A run that was stopped
continues the pack from there, and the bytes are the same. With its last tensor it gets its header,
is read back, and then gets its name.

Source of the format: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from fusecli.batch.store.cleanup import delete_staged
from fusecli.batch.store.encode import bytes_of
from fusecli.batch.store.entries import done_entry, failed_entry
from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.history import PairState
from fusecli.batch.store.journal import Entry, Shapes, of_spec, read_entries
from fusecli.batch.store.layout import pack_name, pack_number, staging_name
from fusecli.batch.store.open_pack import OpenPack
from fusecli.batch.store.pack_headers import LARGEST_ROOM, PackHeaders
from fusecli.batch.store.result import Result
from fusecli.batch.tuning import Tuning
from fusecli.errors import OutputError
from fusecli.features.atomic import not_written
from fusecli.features.formats.safetensors_header import METADATA_KEY
from fusecli.features.literals import OutDtype
from fusecli.pairs.open import Pair

_SMALLEST_ROOM = 4 << 10


class PackSink:
    """Writes results into packs, in the order in which they come.

    Args:
        folder: the output folder, begun.
        size: a pack is full when it holds so many bytes of numbers.
        dtype: of the rows: "float32", "float16" or "bfloat16".
        metadata: of the files.
        tuning: how often data is flushed to the disk.
    """

    def __init__(
        self,
        folder: OutputFolder,
        size: int,
        dtype: OutDtype,
        metadata: dict[str, Any],
        tuning: Tuning,
    ) -> None:
        self._folder, self._size, self._dtype, self._tuning = folder, size, dtype, tuning
        self._room = min(LARGEST_ROOM, max(_SMALLEST_ROOM, size // 64)) // 4096 * 4096
        self._first = json.dumps({METADATA_KEY: {"fusecli": json.dumps(metadata)}}).encode()[:-1]
        self._pack: OpenPack | None = None
        self._waiting: list[Entry] = []  # for the disk
        self._flushed = time.monotonic()
        self._headers = PackHeaders(folder.root)
        try:
            self._number = max(
                (pack_number(name, folder.suffix) for name in folder.root.names()), default=0
            )
            kept = self._continue()
            delete_staged(folder.hidden, staging_name(folder.suffix), kept)
        except OSError as error:
            raise folder.failed(error, folder.staging.path) from None

    def write(self, results: list[Result]) -> None:
        """Add results to the pack.

        Raises:
            OutputError: they cannot be written.
        """
        for result in results:
            pair = result.pair
            if result.tensors is not None and (why := _impossible_key(pair.id)):
                result.tensors, result.error = None, why
            if result.tensors is None:
                self._waiting.append(failed_entry(result))
                continue
            shapes = result.shapes
            pack = self._pack_for(pair.id, shapes, result.nbytes)
            try:
                at = pack.append(pair.id, shapes, [bytes_of(t) for t in result.tensors.values()])
            except OSError as error:
                raise self._failed(pack, error) from None
            self._waiting.append(done_entry(result, pack.name, at))
        if time.monotonic() - self._flushed > self._tuning.commit_seconds:
            self.commit()

    def is_valid(self, entry: Entry) -> bool:
        """Whether a tensor of an earlier run is there, at the place that the journal says."""
        name = entry.output
        if name is None or entry.at is None:
            return False
        # Lines about a pack that no longer exists must not be read as lines about the next one.
        self._number = max(self._number, pack_number(name, self._folder.suffix))
        if self._pack is not None and name == self._pack.name:
            return self._pack.places.get(entry.id) == entry.at
        return self._headers.holds(entry)

    def unfinished(self, entry: Entry) -> bytes | None:
        """The bytes of a result in the pack that a stopped run left unfinished; None where the
        result is in another.

        Raises:
            OSError: they cannot be read.
        """
        pack = self._pack
        if pack is None or entry.output != pack.name or pack.places.get(entry.id) != entry.at:
            return None
        return pack.stored(entry)

    def exists(self, pair: Pair, state: PairState) -> bool:
        """Always true: which tensors exist is known from the journals."""
        return True

    def delete_result(self, pair: Pair) -> None:
        """Does nothing: packs never change, and the index leaves out pairs that failed later."""

    def delete_entry(self, entry: Entry) -> None:
        """Does nothing, for the same reason."""

    def commit(self) -> None:
        """Flush the written results to the disk, and then note them in the journal.

        Raises:
            OutputError: they cannot be written.
        """
        assert self._folder.journal is not None
        if self._pack is not None:
            try:
                self._pack.sync()
            except OSError as error:
                raise self._failed(self._pack, error) from None
        self._folder.journal.append(self._waiting)
        self._waiting.clear()
        self._flushed = time.monotonic()

    def finish(self) -> None:
        """Close the last pack, and flush its name and the journal to the disk.

        Raises:
            OutputError: they cannot be written.
        """
        assert self._folder.journal is not None
        self.commit()
        self._close()
        self._folder.journal.sync()
        try:
            self._folder.root.sync()
        except OSError as error:
            raise self._folder.failed(error, self._folder.path) from None

    def rollback(self) -> None:
        """Keep an unfinished pack as it is: the next run continues it."""
        if self._pack is not None:
            self._pack.leave()
            self._pack = None

    def _pack_for(self, id: str, shapes: Shapes, nbytes: int) -> OpenPack:
        pack = self._pack
        if pack is not None:
            entry = len(pack.header_of(id, shapes))
            # A tensor that is computed again, because its inputs changed, needs another file.
            full = pack.end + nbytes > self._size or id in pack.places
            if full or 8 + len(self._first) + pack.header_bytes + entry + 1 > self._room:
                self.commit()
                self._close()
        if self._pack is None:
            self._pack = self._open(self._next_name())
        return self._pack

    def _next_name(self) -> str:
        """A name that no file has yet."""
        while True:
            self._number += 1
            name = pack_name(self._folder.suffix, self._number)
            if self._folder.root.status(name) is None:
                return name

    def _open(self, name: str) -> OpenPack:
        try:
            flags = os.O_RDWR | os.O_CREAT
            descriptor = self._folder.staging.open(name, flags)
        except OSError as error:
            raise self._folder.failed(error, self._folder.staging.join(name)) from None
        write_all = self._tuning.write_all
        return OpenPack(name, self._folder.staging, descriptor, self._room, self._dtype, write_all)

    def _close(self) -> None:
        if self._pack is None:
            return
        try:
            self._pack.close(self._first, self._folder.root)
        except OSError as error:
            raise self._failed(self._pack, error) from None
        self._pack = None

    def _failed(self, pack: OpenPack, error: OSError) -> OutputError:
        return not_written(self._folder.inside(pack.name), error)

    def _continue(self) -> str | None:
        """Continue the pack that a stopped run left unfinished; returns its name."""
        folder = self._folder
        names = [name for name in folder.staging.names() if pack_number(name, folder.suffix)]
        name = max(names, key=lambda name: pack_number(name, folder.suffix), default=None)
        if name is None or folder.root.status(name) is not None:
            return None
        self._number = pack_number(name, folder.suffix)
        pack = self._pack = self._open(name)
        stored = max(0, os.fstat(pack.descriptor).st_size - self._room)
        for entry in of_spec(read_entries(folder.root, folder.journal_name), folder.spec):
            if entry.output == name and entry.at is not None and entry.at[1] <= stored:
                pack.take(entry)
        pack.cut()
        return name


def _impossible_key(id: str) -> str | None:
    """Why an id cannot be a key of a safetensors file; None where it can."""
    if id == METADATA_KEY:
        return f"{METADATA_KEY} is no possible name in a safetensors file"
    try:
        id.encode()
    except UnicodeEncodeError:
        return (
            f"the id {id!r} is not Unicode text, and keys of a safetensors file are: rename the "
            "files, give a manifest with a column id, or leave --pack out"
        )
    return None
