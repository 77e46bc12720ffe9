"""The journal: one JSON line a pair, appended when its result is safe.

An incomplete last line is cut off before the next is written, and its pair is done again. For
every pair the latest line counts: the one with the highest `run`, and the last one within a
journal. Every run takes a number that is one higher than the highest it finds. Journals of fusecli
0.1.0 (format 1) have no such number; their lines are older than all others, and among them the
times of the files decide.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from fusecli.batch.store.locks import try_lock
from fusecli.batch.store.safe_folder import SafeFolder
from fusecli.errors import OutputError, shortened
from fusecli.features.atomic import not_written
from fusecli.features.writer import FUSED_KEY

FORMAT = 2  # of journals and of run.json

Shapes = dict[str, tuple[int, ...]]
FileStamp = tuple[int, int] | None

_LONGEST_LINE = 1 << 18
_LONGEST_ERROR = 2000
_LARGEST = 1 << 62
_MOST_AXES = 32
_MOST_TENSORS = 64
_BEGIN = b'{"id":'


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes:
        id: of the pair.
        output: its file, relative to the output folder; None where there is none.
        shapes: of the tensors of the result, by name; None where there is none.
        error: why it failed.
        stamps: size and time of change of its input files, as they were read.
        at: where its numbers lie in a pack, first byte and last plus one.
        size: bytes of a file of its own; 0 in a pack, and in journals that do not say it.
        source: tells which files, keys and rows were read; 0 in journals that do not say it.
        content: tells the features that were read; 0 where it is not known.
        diagnoses: what may be wrong with the result, as `code: message`.
        notes: what was assumed, or used though no option named it.
        removed: its result was removed, since the pair is no longer among the inputs.
        run: the number of the run that wrote the line; 0 in journals that do not say it.
        spec: tells what that run computed, see `spec_of`; 0 in journals that do not say it.
        written: tells the numbers of the result; 0 in journals that do not say it.
    """

    id: str
    output: str | None
    shapes: Shapes | None
    error: str | None
    stamps: list[FileStamp]
    at: tuple[int, int] | None = None
    size: int = 0
    source: int = 0
    content: int = 0
    diagnoses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    removed: bool = False
    run: int = 0
    spec: int = 0
    written: int = 0

    @property
    def done(self) -> bool:
        """Whether the line says that there is a result."""
        return self.error is None and not self.removed

    def is_of(self, spec: int) -> bool:
        """Whether a run that computed this wrote the line, as far as is known; 0 is any run."""
        return not spec or self.spec in (0, spec)

    def line(self, run: int, spec: int = 0) -> bytes:
        """As it stands in the journal, written by the run of this number."""
        shape: object = self.shapes
        if self.shapes is not None and len(self.shapes) == 1:
            (shape,) = self.shapes.values()
        error = None if self.error is None else shortened(self.error, _LONGEST_ERROR)
        data: dict[str, Any] = {
            "id": self.id,
            "output": self.output,
            "shape": shape,
            "status": "removed" if self.removed else "done" if error is None else "failed",
            "error": error,
            "inputs": self.stamps,
        }
        if self.at is not None:
            data["at"] = self.at
        if self.size:
            data["size"] = self.size
        if self.diagnoses:
            data["diagnoses"] = self.diagnoses
        if self.notes:
            data["notes"] = self.notes
        if self.source:
            data["source"] = f"{self.source:016x}"
        if self.content:
            data["content"] = f"{self.content:016x}"
        if self.written:
            data["written"] = f"{self.written:016x}"
        if spec:
            data["spec"] = f"{spec:016x}"
        data["run"] = run
        data["format"] = FORMAT
        return json.dumps(data, separators=(",", ":")).encode() + b"\n"


class Journal:
    """A journal that is open for appending, by one process at a time.

    Args:
        folder: the output folder.
        name: of the file, which is made where there is none.
        descriptor: of the open file.

    Attributes:
        run: number of this run, written into every line.
        spec: tells what this run computes; written into every line.
        outcomes: number of lines of this run that say whether a pair is done or failed.

    Raises:
        OutputError: another process has it open, it is no journal, or it cannot be written.
    """

    def __init__(self, folder: SafeFolder, name: str, descriptor: int) -> None:
        self._path, self._descriptor = folder.join(name), descriptor
        self.run, self.spec, self.outcomes = 1, 0, 0
        try:
            if not try_lock(descriptor, "exclusive", self._path):
                raise OutputError(f"{self._path}: another run is writing it: wait for it")
            if not is_journal(folder, name):
                raise OutputError(
                    f"{self._path}: is no journal of `fusecli batch`: say another -o, or move it"
                )
            self._mend()
        except OSError as error:
            os.close(descriptor)
            raise self._failed(error) from None
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, entries: Iterable[Entry]) -> None:
        """Write lines; they survive if this process is killed right after.

        Raises:
            OutputError: the disk is full, or a limit is reached.
        """
        entries = list(entries)
        data = memoryview(b"".join(entry.line(self.run, self.spec) for entry in entries))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._mend()
            raise self._failed(error) from None
        self.outcomes += sum(not entry.removed for entry in entries)

    def sync(self) -> None:
        """Flush it to the disk.

        Raises:
            OutputError: the disk is full, or failed.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _mend(self) -> None:
        """Cut off an incomplete last line."""
        size = end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - (1 << 16))
            found = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._descriptor, end)

    def _failed(self, error: OSError) -> OutputError:
        return not_written(self._path, error)


def is_journal(folder: SafeFolder, name: str) -> bool:
    """Whether a file is empty or holds at least one line of a journal, a torn one included.

    After a power cut some file systems give a file its length, with zeros in it.

    Raises:
        OutputError: it is no regular file, or it cannot be read.
    """
    empty = True
    for line in _lines(folder, name):
        torn = line[-1:] != b"\n" and (line.startswith(_BEGIN) or not line.strip(b"\0"))
        if torn or decode_line(line) is not None:
            return True
        empty = False
    return empty


def of_spec(entries: Iterable[Entry], spec: int) -> Iterator[Entry]:
    """Entries of runs that computed this; those of others were copied into the folder."""
    return (entry for entry in entries if entry.is_of(spec))


def read_entries(
    folder: SafeFolder, name: str, damaged: list[int] | None = None
) -> Iterator[Entry]:
    """The lines of a journal.

    Args:
        folder: the output folder.
        name: of the journal.
        damaged: receives the numbers of lines that are not what a journal holds; they are
            passed over, as is a last line without an end.

    Raises:
        OutputError: it is no regular file, or it cannot be read.
    """
    for number, line in enumerate(_lines(folder, name), 1):
        entry = decode_line(line)
        if entry is not None:
            yield entry
        elif damaged is not None and line[-1:] == b"\n":
            damaged.append(number)


def _lines(folder: SafeFolder, name: str) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long only the beginning."""
    try:
        descriptor = folder.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(folder.join(name), error) from None
    with open(descriptor, "rb") as file:
        try:
            while line := file.readline(_LONGEST_LINE):
                rest = line
                while rest and rest[-1:] != b"\n":
                    rest = file.readline(_LONGEST_LINE)
                yield line if line[-1:] == b"\n" or not rest else line[:-1] + b"\n"
        except OSError as error:
            raise _unreadable(folder.join(name), error) from None


def _unreadable(path: str, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be read: {error.strerror or error}")


def decode_line(line: bytes) -> Entry | None:
    """One line, checked by type; None where it is damaged."""
    try:
        data = json.loads(line)
        if type(data) is not dict:
            return None
        return _entry(data)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _entry(data: dict[str, Any]) -> Entry:
    """Raises ValueError, TypeError or KeyError for what does not fit."""
    output, shape, error = data["output"], data["shape"], data["error"]
    status = data.get("status", "done" if error is None else "failed")
    removed = status == "removed"
    if status not in ("done", "failed", "removed") or (status == "failed") != (error is not None):
        raise ValueError
    shapes = None if shape is None else _shapes(shape)
    if (output is None) != (shapes is None) or (status == "done") != (output is not None):
        raise ValueError
    at = data.get("at")
    if at is not None:
        first, end = at
        at = _number(first), _number(end)
        if at[0] > at[1]:
            raise ValueError
    if not 1 <= _number(data.get("format", 1)) <= FORMAT:
        raise ValueError
    inputs = data["inputs"]
    if type(inputs) is not list:
        raise TypeError
    return Entry(
        _text(data["id"]),
        None if output is None else _text(output),
        shapes,
        None if error is None else _text(error),
        [_stamp(stamp) for stamp in inputs],
        at,
        _number(data.get("size", 0)),
        _hexadecimal(data.get("source")),
        _hexadecimal(data.get("content")),
        [_text(diagnosis) for diagnosis in data.get("diagnoses", [])],
        [_text(note) for note in data.get("notes", [])],
        removed,
        _number(data.get("run", 0)),
        _hexadecimal(data.get("spec")),
        _hexadecimal(data.get("written")),
    )


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    if not 0 <= value < _LARGEST:
        raise ValueError
    return value


def _hexadecimal(value: object) -> int:
    if value is None:
        return 0
    if type(value) is not str or len(value) != 16:
        raise ValueError
    return int(value, 16)


def _stamp(value: object) -> FileStamp:
    if value is None:
        return None
    if type(value) is not list:
        raise TypeError
    size, changed = value
    if type(changed) is not int or abs(changed) >= _LARGEST:
        raise ValueError  # times before 1970 are below zero
    return _number(size), changed


def _shapes(shape: object) -> Shapes:
    if type(shape) is list:
        named: dict[str, Any] = {FUSED_KEY: shape}
    elif type(shape) is dict:
        named = shape
    else:
        raise TypeError
    if not 1 <= len(named) <= _MOST_TENSORS:
        raise ValueError
    shapes = {}
    for name, sizes in named.items():
        if type(sizes) is not list or len(sizes) > _MOST_AXES:
            raise ValueError
        shapes[name] = tuple(_number(size) for size in sizes)
    return shapes


def fingerprint(*parts: object) -> int:
    """64 bits that tell ids, and versions of inputs, apart without keeping them."""
    text = json.dumps(parts, separators=(",", ":")).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
