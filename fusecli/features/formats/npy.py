"""NumPy's .npy: headers read by numpy, what they promise compared with the file."""

from __future__ import annotations

import io
import math
import os
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase, BufferedReader
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shown_path
from fusecli.features.dtypes import refusal, storage_type
from fusecli.features.formats.base import (
    Buffers,
    Encode,
    FileContents,
    OutputContents,
    bytes_of,
    one_line,
)
from fusecli.features.tensor import (
    ByteSource,
    FileBytes,
    MemoryBytes,
    Span,
    StoredTensor,
    Unreadable,
)

# What numpy's header parser raises on hostile headers, each seen.
_BROKEN = (
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    KeyError,
    IndexError,
    UnicodeError,
    tokenize.TokenError,
)

_LONGEST_HEADER = 1 << 16
_KEPT_HEADERS = 4096


class NpyFormat:
    """One array without a name."""

    endings = (".npy",)
    starts = (npy_format.MAGIC_PREFIX,)
    has_keys = False
    dtypes = ("float32", "float16")

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """As `Format.open`."""
        size = os.fstat(handle.fileno()).st_size
        return FileContents({"": open_npy(handle, size, file, FileBytes(handle))})

    def sink(self, file: IO[bytes], folder: str, contents: OutputContents) -> NpySink:
        """As `WritableFormat.sink`."""
        return NpySink(file, contents)

    def encoder(self, dtype: str, metadata: dict[str, Any]) -> Encode:
        """As `WritableFormat.encoder`."""
        header = lru_cache(_KEPT_HEADERS)(lambda shape: npy_header(shape, dtype))

        def encode(tensors: Mapping[str, NDArray[Any]]) -> Buffers:
            (tensor,) = tensors.values()
            return [header(tensor.shape), bytes_of(tensor)]

        return encode


class NpySink:
    """Writes one array, chunk by chunk."""

    def __init__(self, file: IO[bytes], contents: OutputContents) -> None:
        self._file, self._contents = file, contents

    def begin(self) -> None:
        (shape,) = self._contents.shapes.values()
        self._file.write(npy_header(shape, self._contents.dtype))

    def write(self, index: int, data: memoryview) -> None:
        self._file.write(data)

    def finish(self) -> None:
        pass

    def discard(self) -> None:
        pass


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The bytes before the numbers of a .npy file.

    Args:
        shape: of the array.
        dtype: "float32" or "float16"; "bfloat16" is written as its bits.
    """
    header = {"descr": storage_type(dtype).str, "fortran_order": False, "shape": shape}
    sink = io.BytesIO()
    npy_format.write_array_header_1_0(sink, header)
    return sink.getvalue()


def open_npy(handle: BufferedIOBase, size: int, file: str, source: ByteSource) -> StoredTensor:
    """Read the header of a .npy file.

    Args:
        handle: where the header is read, at its start.
        size: bytes of the file.
        file: its name.
        source: where the numbers will be read.

    Raises:
        FeatureFileError: not a .npy file, or damaged.
    """
    header = read_npy_header(handle, shown_path(file))
    offset = handle.tell()
    header.check_size(size - offset, shown_path(file))
    return header.stored(file, None, source, offset)


def npy_from_stream(stream: BufferedIOBase, file: str) -> tuple[StoredTensor, bytes]:
    """The same for a stream (stdin): read as far as its header says, and one byte beyond.

    Returns:
        The tensor, and all bytes read.

    Raises:
        FeatureFileError: not a .npy file, damaged, or the stream cannot be read.
    """
    try:
        data = bytearray(stream.read(npy_format.MAGIC_LEN))
        if data.startswith(npy_format.MAGIC_PREFIX):
            data += stream.read(_LONGEST_HEADER)
        start = io.BytesIO(data)
        header = read_npy_header(start, shown_path(file))
        whole = start.tell() + (0 if header.dtype.hasobject else header.nbytes)
        while len(data) <= whole and (block := stream.read(min(1 << 20, whole + 1 - len(data)))):
            data += block
    except OSError as error:
        raise FeatureFileError(
            f"{shown_path(file)}: cannot be read: {error.strerror or error}"
        ) from None
    content = bytes(data)
    stored = open_npy(io.BytesIO(content), len(content), file, MemoryBytes(content))
    return stored, content


@dataclass(frozen=True)
class NpyHeader:
    """What the header of an array says.

    Attributes:
        nbytes: of the numbers that should follow.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    nbytes: int

    def check_size(self, follow: int, where: str) -> None:
        """Compare the promise with the bytes that follow; pickled objects promise no size.

        Raises:
            FeatureFileError: they are not as many.
        """
        if self.nbytes == follow or self.dtype.hasobject:
            return
        state = "cut short" if self.nbytes > follow else "followed by something else"
        raise FeatureFileError(
            f"{where}: is {state}: its header promises {list(self.shape)} {self.dtype.name}, "
            f"{self.nbytes:,} bytes, and {max(follow, 0):,} follow"
        )

    def stored(self, file: str, key: str | None, source: ByteSource, offset: int) -> StoredTensor:
        """The tensor whose numbers begin at `offset` of `source`."""
        problem = refusal(self.dtype)
        span = Span(source, offset, self.dtype, self.fortran_order)
        numbers = span if problem is None else Unreadable(problem)
        return StoredTensor(file, key, self.shape, self.dtype.name, self.nbytes, numbers)


def read_npy_header(stream: BufferedIOBase | IO[bytes], where: str) -> NpyHeader:
    """Read the header of an array, and stop behind it.

    Args:
        stream: at its start.
        where: the file, for messages.

    Raises:
        FeatureFileError: not a .npy file, or damaged.
    """
    start = stream.read(npy_format.MAGIC_LEN)
    if not start:
        raise FeatureFileError(f"{where}: is empty (0 bytes)")
    if start[:4] == b"PK\x03\x04":
        raise FeatureFileError(
            f"{where}: is a zip archive: name it .npz (or .pt if torch wrote it)"
        )
    if len(start) < npy_format.MAGIC_LEN or not start.startswith(npy_format.MAGIC_PREFIX):
        hint = ": it looks like a pickle, which fusecli never loads" if start[:1] == b"\x80" else ""
        raise FeatureFileError(f"{where}: is not a .npy file{hint}")
    version = (start[-2], start[-1])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FeatureFileError(f"{where}: is a .npy file of unknown version {version}")
    # Version 3 differs from 2 only in the encoding of field names, which are refused anyway.
    width = 2 if version == (1, 0) else 4
    prefix = stream.read(width)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < width or length > _LONGEST_HEADER:
        # Numpy would read it before it looks at its length.
        raise FeatureFileError(f"{where}: has a damaged .npy header: {length:,} bytes long")
    header = io.BytesIO(prefix + stream.read(length))
    read = npy_format.read_array_header_1_0 if width == 2 else npy_format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            shape, fortran_order, dtype = read(header)
    except _BROKEN as error:
        raise FeatureFileError(f"{where}: has a damaged .npy header: {one_line(error)}") from None
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise FeatureFileError(f"{where}: has a damaged .npy header: shape {list(shape)}")
    sizes = tuple(int(size) for size in shape)
    return NpyHeader(sizes, fortran_order, dtype, math.prod(sizes) * dtype.itemsize)
