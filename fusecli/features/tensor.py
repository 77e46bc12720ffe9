"""One tensor as it lies in a file: what its header says, and its numbers on request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shown_path
from fusecli.features.dtypes import to_float32


class ByteSource(Protocol):
    """Bytes that can be read from a place: an open file, or a member of an archive."""

    def seek(self, offset: int, /) -> int: ...
    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass(frozen=True)
class Span:
    """Where the numbers of a tensor lie in an open file.

    Attributes:
        handle: the open file.
        offset: of the first number, in bytes.
        storage: numpy type of the stored bytes.
        fortran_order: the first axis varies fastest.
        mappable: the handle is a real file, so that an inner axis can be cut by a memory map.
    """

    handle: ByteSource
    offset: int
    storage: np.dtype[Any]
    fortran_order: bool = False
    mappable: bool = True


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a feature file. Nothing but its header has been read.

    Attributes:
        file: the path as it was given, "-" for stdin.
        key: its name in a file of several tensors, or None.
        shape: sizes of its axes.
        dtype: name of the stored type, numpy's or "bfloat16", "float8_e4m3fn", "float8_e5m2".
        nbytes: bytes of the stored numbers.
        source: where the numbers are: a span of an open file, an array already in memory, or
            a sentence that says why fusecli does not read them (a file may hold text beside
            its features, and only asking for it is an error).
    """

    file: str
    key: str | None
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    source: Span | NDArray[Any] | str

    @property
    def where(self) -> str:
        """File and key, for messages."""
        file = shown_path(self.file)
        return file if self.key is None else f"{file}[{self.key}]"

    def check_readable(self) -> None:
        """Raises:
        FeatureFileError: the tensor holds something that is not real numbers.
        """
        if isinstance(self.source, str):
            raise FeatureFileError(f"{self.where}: {self.source}")

    def read(self) -> NDArray[np.float32]:
        """All numbers, as float32.

        Raises:
            FeatureFileError: the file became shorter since its header was read.
        """
        return to_float32(self.raw(), self.dtype)

    def part(self, axis: int, start: int, stop: int) -> NDArray[np.float32]:
        """The slice `start:stop` of one axis, as float32.

        Raises:
            FeatureFileError: the file became shorter since its header was read.
        """
        return to_float32(self.raw_part(axis, start, stop), self.dtype)

    def raw(self) -> NDArray[Any]:
        """All numbers as they are stored; plain bits for the types numpy does not have.

        Raises:
            FeatureFileError: the file became shorter since its header was read.
        """
        self.check_readable()
        if isinstance(self.source, np.ndarray):
            return self.source
        assert isinstance(self.source, Span)
        if self.source.fortran_order:
            return self._bits(self.source, 0, self.shape[::-1]).T
        return self._bits(self.source, 0, self.shape)

    def raw_part(
        self, axis: int, start: int, stop: int, place: NDArray[np.uint8] | None = None
    ) -> NDArray[Any]:
        """The slice `start:stop` of one axis, as it is stored.

        Only that slice is read: straight into memory when the file holds it in one piece,
        through a memory map otherwise.

        Args:
            axis: which axis is cut.
            start, stop: the cut.
            place: memory to read into where that is possible and it is large enough; fresh
                memory for every part of a large file would cost more than reading it.

        Raises:
            FeatureFileError: the file became shorter since its header was read.
        """
        cut = (slice(None),) * axis + (slice(start, stop),)
        span = self.source
        if start == 0 and stop == self.shape[axis]:
            return self.raw()
        if not isinstance(span, Span):
            return self.raw()[cut]
        if axis == 0 and not span.fortran_order:
            row = math.prod(self.shape[1:]) * span.storage.itemsize
            return self._bits(span, start * row, (stop - start, *self.shape[1:]), place)
        if span.mappable:
            return self._mapped(span)[cut]
        return self.raw()[cut]

    def _bits(
        self,
        span: Span,
        skip: int,
        shape: tuple[int, ...],
        place: NDArray[np.uint8] | None = None,
    ) -> NDArray[Any]:
        nbytes = math.prod(shape) * span.storage.itemsize
        if place is None or place.size < nbytes:
            try:
                out = np.empty(shape, span.storage)
            except MemoryError:
                raise FeatureFileError(
                    f"{self.where}: {nbytes:,} bytes do not fit into memory"
                ) from None
        else:
            out = place[:nbytes].view(span.storage).reshape(shape)
        view = out.reshape(-1).view(np.uint8).data
        span.handle.seek(span.offset + skip)
        done = 0
        while done < len(view):
            # A signal or a file system may end one read early; only zero means the end.
            count = span.handle.readinto(view[done:])
            if not count:
                raise self._cut_short()
            done += count
        return out

    def _mapped(self, span: Span) -> NDArray[Any]:
        try:
            mapped: NDArray[Any] = np.memmap(
                span.handle,  # type: ignore[call-overload]
                span.storage,
                mode="r",
                offset=span.offset,
                shape=self.shape,
                order="F" if span.fortran_order else "C",
            )
        except ValueError:
            raise self._cut_short() from None
        return mapped

    def _cut_short(self) -> FeatureFileError:
        return FeatureFileError(f"{self.where}: the file became shorter while it was read")
