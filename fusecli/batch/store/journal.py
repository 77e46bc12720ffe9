"""The journal: one JSON line a pair, appended when its result is safe, and what it tells later.

A line that was torn by a stop is cut off before the next is written; what it said is done again.
For every pair the last line counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.pair_inputs import FileStamp, FileStamps
from fusecli.errors import OutputError
from fusecli.features.atomic import not_written
from fusecli.features.writer import FUSED_KEY
from fusecli.pairs.open import Pair

DONE, FAILED = 1, 2
_STATES = {"done": DONE, "failed": FAILED}


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes:
        id: of the pair.
        output: its file, relative to the output folder; None where it failed.
        shapes: of the tensors of the result, by name; None where it failed.
        error: why it failed.
        stamps: size and time of change of its input files, as they were read.
        at: where its numbers lie in a pack, first byte and last plus one.
        size: bytes of a file of its own; 0 in a pack, and in journals that do not say it.
    """

    id: str
    output: str | None
    shapes: Shapes | None
    error: str | None
    stamps: list[FileStamp]
    at: tuple[int, int] | None = None
    size: int = 0

    def line(self) -> bytes:
        """As it stands in the journal."""
        shape: object = self.shapes
        if self.shapes is not None and len(self.shapes) == 1:
            (shape,) = self.shapes.values()
        data: dict[str, Any] = {
            "id": self.id,
            "output": self.output,
            "shape": shape,
            "status": "done" if self.error is None else "failed",
            "error": self.error,
            "inputs": self.stamps,
        }
        if self.at is not None:
            data["at"] = self.at
        if self.size:
            data["size"] = self.size
        return json.dumps(data, separators=(",", ":")).encode() + b"\n"


class Journal:
    """A journal that is open for appending, by one process at a time.

    Args:
        path: of the file, which is made where there is none.

    Raises:
        OutputError: another process has it open, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._failed(error) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._mend()
        except OSError as error:
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise OutputError(f"{path}: another run is writing it: wait for it") from None
            raise self._failed(error) from None

    def append(self, entries: Iterable[Entry]) -> None:
        """Write lines; they are there for a process that is killed right after.

        Raises:
            OutputError: the disk is full, or a limit is reached.
        """
        data = memoryview(b"".join(entry.line() for entry in entries))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._mend()
            raise self._failed(error) from None

    def sync(self) -> None:
        """Bring it to the disk.

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
        """Cut off a last line that was torn."""
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


def read_entries(path: str) -> Iterator[Entry]:
    """The lines of a journal; those that are damaged are passed over.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    data = json.loads(line)
                    at = data.get("at")
                    yield Entry(
                        data["id"],
                        data["output"],
                        _shapes(data["shape"]),
                        data["error"],
                        data["inputs"],
                        None if at is None else (at[0], at[1]),
                        int(data.get("size", 0)),
                    )
                except (ValueError, TypeError, KeyError, IndexError):
                    continue
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _shapes(shape: Any) -> Shapes | None:
    if shape is None:
        return None
    named = shape if isinstance(shape, dict) else {FUSED_KEY: shape}
    return {name: tuple(sizes) for name, sizes in named.items()}


def fingerprint(*parts: object) -> int:
    """64 bits that tell ids, and versions of inputs, apart without keeping them."""
    text = json.dumps(parts, separators=(",", ":")).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


class PreviousResults:
    """What earlier runs did, in 25 bytes a pair, whatever the ids are.

    Args:
        journals: paths of all journals of the output folder.
        counts: whether what a line says was done is still there.
    """

    def __init__(
        self, journals: Iterable[str], counts: Callable[[Entry], bool] = lambda entry: True
    ) -> None:
        ids, versions, states, lengths = array("Q"), array("Q"), array("B"), array("Q")
        for path in journals:
            for entry in read_entries(path):
                there = entry.error is not None or counts(entry)
                ids.append(fingerprint(entry.id))
                versions.append(fingerprint(entry.id, entry.stamps))
                states.append(0 if not there else DONE if entry.error is None else FAILED)
                lengths.append(entry.size)
        found = np.frombuffer(ids, np.uint64) if ids else np.zeros(0, np.uint64)
        # The last line of each id: the sort is stable.
        order = np.argsort(found, kind="stable")
        ordered = found[order]
        last = np.ones(len(ordered), bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        kept = order[last]
        self._ids: NDArray[np.uint64] = ordered[last]
        self._versions = np.frombuffer(versions, np.uint64)[kept] if ids else found
        self._states = np.frombuffer(states, np.uint8)[kept] if ids else np.zeros(0, np.uint8)
        self._sizes = np.frombuffer(lengths, np.uint64)[kept] if ids else found

    def __len__(self) -> int:
        return len(self._ids)

    def state(self, pair: Pair) -> tuple[int, bool, int]:
        """What became of a pair.

        Returns:
            DONE, FAILED or 0, whether its inputs are still those that were read, and the size of
            its file, 0 where that is not known.
        """
        if not len(self._ids):
            return 0, False, 0
        wanted = np.uint64(fingerprint(pair.id))
        index = int(np.searchsorted(self._ids, wanted))
        if index == len(self._ids) or self._ids[index] != wanted or not self._states[index]:
            return 0, False, 0
        version = fingerprint(pair.id, FileStamps().of(pair))
        same = int(self._versions[index]) == version
        return int(self._states[index]), same, int(self._sizes[index])

    @property
    def failed(self) -> int:
        """Pairs whose last line says that they failed."""
        return int((self._states == FAILED).sum())

    @property
    def done(self) -> int:
        """Pairs whose last line says that they are done."""
        return int((self._states == DONE).sum())
