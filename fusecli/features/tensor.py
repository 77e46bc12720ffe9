"""One tensor as it lies in a file: what its header says, and its numbers on request."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BufferedReader
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shown_path
from fusecli.features.dtypes import to_float32
from fusecli.records import record

Buffer = NDArray[np.uint8]

# Cuts through inner axes are read in bands of this many bytes, from which they are copied.
_BAND = 4 << 20
# Pieces at least this long, or far apart, are read one by one instead.
_LONG_PIECE = 1 << 12


class TensorSource(Protocol):
    """Where the numbers of a tensor come from.

    The shape is an argument, so that the same numbers can also be read as rows.
    """

    @property
    def problem(self) -> str | None:
        """Why fusecli does not read these numbers, as the end of a sentence; None if it does."""

    @property
    def c_ordered(self) -> bool:
        """The last axis varies fastest."""

    def raw(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """All numbers as they are stored.

        Raises:
            EOFError: the file became shorter.
            OSError: the system cannot read it.
        """

    def raw_part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        """The slice `start:stop` of one axis; may use `buffer`, where that is large enough.

        Raises: as `raw`.
        """


class ByteSource(Protocol):
    """Bytes that can be read from any place; several threads may.

    Attributes:
        sequential: going back is expensive (a packed member of an archive).
    """

    @property
    def sequential(self) -> bool: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer.

        Raises:
            EOFError: there are not so many bytes.
            OSError: the system cannot read them.
        """


class FileBytes:
    """The bytes of an open file; reading does not move the position in the file."""

    sequential = False

    def __init__(self, handle: BufferedReader) -> None:
        self._handle, self._lock = handle, Lock()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            # A signal or a file system may end one read early; only zero means the end.
            count = self._read(offset + done, buffer[done:])
            if not count:
                raise EOFError
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes. Raises as `read_into`."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    if hasattr(os, "preadv"):

        def _read(self, offset: int, buffer: memoryview) -> int:
            return os.preadv(self._handle.fileno(), [buffer], offset)

    else:

        def _read(self, offset: int, buffer: memoryview) -> int:
            with self._lock:
                self._handle.seek(offset)
                return self._handle.readinto(buffer)


class MemoryBytes:
    """Bytes that are in memory already."""

    sequential = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        piece = self._data[offset : offset + len(buffer)]
        if len(piece) < len(buffer):
            raise EOFError
        buffer[:] = piece


@record
class Span:
    """Numbers that lie in a file in one piece.

    Attributes:
        source: the file's bytes.
        offset: of the first number, in bytes.
        storage: numpy type of the stored bytes.
        fortran_order: the first axis varies fastest.
    """

    source: ByteSource
    offset: int
    storage: np.dtype[Any]
    fortran_order: bool = False

    problem: None = None

    @property
    def c_ordered(self) -> bool:
        return not self.fortran_order

    def raw(self, shape: tuple[int, ...]) -> NDArray[Any]:
        if self.fortran_order:
            return self._bits(0, shape[::-1], None).T
        return self._bits(0, shape, None)

    def raw_part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        if self.fortran_order:  # the same bytes are a C-ordered array with its axes reversed
            turned = self._part(shape[::-1], len(shape) - 1 - axis, start, stop, buffer)
            return turned.T
        return self._part(shape, axis, start, stop, buffer)

    def _part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        cut = (*shape[:axis], stop - start, *shape[axis + 1 :])
        if outer <= 1 or not math.prod(cut):
            return self._bits(start * inner * self.storage.itemsize, cut, buffer)
        if self.source.sequential:
            whole = self._bits(0, shape, None)
            return whole[(slice(None),) * axis + (slice(start, stop),)]
        out = self._empty(cut, buffer)
        rows = out.reshape(outer, (stop - start) * inner)
        length = shape[axis] * inner  # numbers from one piece to the next
        if rows.shape[1] * self.storage.itemsize >= _LONG_PIECE or 8 * rows.shape[1] < length:
            for index, row in enumerate(rows):
                skip = (index * length + start * inner) * self.storage.itemsize
                self._fill(skip, row)
            return out
        step = max(1, _BAND // (length * self.storage.itemsize))
        for first in range(0, outer, step):
            last = min(first + step, outer)
            band = self._bits(first * length * self.storage.itemsize, (last - first, length), None)
            rows[first:last] = band[:, start * inner : stop * inner]
        return out

    def _bits(self, skip: int, shape: tuple[int, ...], buffer: Buffer | None) -> NDArray[Any]:
        out = self._empty(shape, buffer)
        self._fill(skip, out)
        return out

    def _empty(self, shape: tuple[int, ...], buffer: Buffer | None) -> NDArray[Any]:
        nbytes = math.prod(shape) * self.storage.itemsize
        if buffer is None or buffer.size < nbytes:
            return np.empty(shape, self.storage)
        return buffer[:nbytes].view(self.storage).reshape(shape)

    def _fill(self, skip: int, out: NDArray[Any]) -> None:
        self.source.read_into(self.offset + skip, out.reshape(-1).view(np.uint8).data)


@record
class InMemory:
    """Numbers that have been read already, as they are stored."""

    array: NDArray[Any]

    problem: None = None
    c_ordered = True

    def raw(self, shape: tuple[int, ...]) -> NDArray[Any]:
        return self.array.reshape(shape)

    def raw_part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        return self.raw(shape)[(slice(None),) * axis + (slice(start, stop),)]


@record
class Unreadable:
    """A tensor that is not numbers; a file may hold it beside its features.

    Attributes:
        problem: why it is not read, as the end of a sentence.
    """

    problem: str

    c_ordered = False

    def raw(self, shape: tuple[int, ...]) -> NDArray[Any]:
        raise FeatureFileError(self.problem)

    def raw_part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        raise FeatureFileError(self.problem)


@record
class StoredTensor:
    """One tensor of a feature file. Nothing but its header has been read.

    Attributes:
        file: the path as it was given, "-" for stdin.
        key: its name in a file of several tensors, or None.
        shape: sizes of its axes.
        dtype: name of the stored type, numpy's or "bfloat16", "float8_e4m3fn", "float8_e5m2".
        nbytes: bytes of the stored numbers.
        source: where the numbers are.
    """

    file: str
    key: str | None
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    source: TensorSource

    @property
    def where(self) -> str:
        """File and key, for messages."""
        file = shown_path(self.file)
        return file if self.key is None else f"{file}[{self.key}]"

    def check_readable(self) -> None:
        """Raises:
        FeatureFileError: the tensor holds something that is not real numbers.
        """
        if self.source.problem is not None:
            raise FeatureFileError(f"{self.where}: {self.source.problem}")

    def read(self) -> NDArray[np.float32]:
        """All numbers, as float32.

        Raises:
            FeatureFileError: they are no real numbers, do not fit into memory, cannot be
                read, or the file became shorter since its header was read.
        """
        return to_float32(self.raw(), self.dtype)

    def part(self, axis: int, start: int, stop: int) -> NDArray[np.float32]:
        """The slice `start:stop` of one axis, as float32.

        Raises:
            FeatureFileError: as `read`.
        """
        return to_float32(self.raw_part(axis, start, stop), self.dtype)

    def raw(self) -> NDArray[Any]:
        """All numbers as they are stored; plain bits for the types numpy does not have.

        Raises:
            FeatureFileError: as `read`.
        """
        self.check_readable()
        return self._reading(lambda: self.source.raw(self.shape))

    def raw_part(
        self, axis: int, start: int, stop: int, buffer: Buffer | None = None
    ) -> NDArray[Any]:
        """The slice `start:stop` of one axis, as it is stored; only that slice is read.

        Args:
            axis: which axis is cut.
            start, stop: the cut.
            buffer: memory to read into where that is possible and it is large enough; fresh
                memory for every part of a large file would cost more than reading it.

        Raises:
            FeatureFileError: as `read`.
        """
        self.check_readable()
        return self._reading(lambda: self.source.raw_part(self.shape, axis, start, stop, buffer))

    def loaded(self) -> StoredTensor:
        """The same tensor with its numbers in memory.

        Raises:
            FeatureFileError: as `read`.
        """
        return replace(self, source=InMemory(self.raw()))

    def as_rows(self) -> StoredTensor:
        """The same numbers as `[rows, width]`, where they are stored in that order."""
        if not self.source.c_ordered:
            return self
        width = self.shape[-1] if self.shape else 1
        return replace(self, shape=(math.prod(self.shape[:-1]), width))

    def _reading(self, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        try:
            return read()
        except EOFError:
            problem = "the file became shorter while it was read"
        except MemoryError:
            problem = f"{self.nbytes:,} bytes do not fit into memory"
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        raise FeatureFileError(f"{self.where}: {problem}")


class ManyTensors(Mapping[str, StoredTensor]):
    """The tensors of a file, each of which is made when it is asked for."""

    @abstractmethod
    def shape_of(self, key: str) -> tuple[int, ...]:
        """The shape of one of them, which is quicker to find than the whole.

        Raises:
            KeyError: there is none of this name.
        """
