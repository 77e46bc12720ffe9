"""NumPy's .npy and .npz, their headers read by numpy, their claims held against the file."""

from __future__ import annotations

import io
import math
import tokenize
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy_format

from fusecli.errors import FeatureFileError, shortened, shown_path
from fusecli.features.dtypes import refusal
from fusecli.features.tensor import ByteSource, Span, StoredTensor

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
    UnicodeError,
    tokenize.TokenError,
)

_LONGEST_HEADER = 1 << 16


def open_npy(handle: BufferedIOBase, size: int, file: str) -> StoredTensor:
    """Read the header of a .npy file.

    Args:
        handle: the open file, at its start.
        size: bytes of the file.
        file: its name.

    Raises:
        FeatureFileError: not a .npy file, or damaged.
    """
    header = _header(handle, shown_path(file))
    if header.claimed != size - handle.tell() and not header.dtype.hasobject:
        _refuse_claim(header, size - handle.tell(), shown_path(file))
    return header.stored(
        file, None, handle, handle.tell(), mappable=not isinstance(handle, io.BytesIO)
    )


def npy_from_stream(stream: BufferedIOBase, file: str) -> tuple[StoredTensor, bytes]:
    """The same for a stream (stdin): read as far as its header says, and one byte beyond.

    Returns:
        The tensor, and all bytes read.

    Raises:
        FeatureFileError: not a .npy file, or damaged.
    """
    data = bytearray(stream.read(npy_format.MAGIC_LEN))
    if data.startswith(npy_format.MAGIC_PREFIX):
        data += stream.read(_LONGEST_HEADER)
    start = io.BytesIO(data)
    header = _header(start, shown_path(file))
    whole = start.tell() + (0 if header.dtype.hasobject else header.claimed)
    while len(data) <= whole and (block := stream.read(min(1 << 20, whole + 1 - len(data)))):
        data += block
    content = bytes(data)
    return open_npy(io.BytesIO(content), len(content), file), content


def open_npz(handle: BufferedIOBase, file: str) -> dict[str, StoredTensor]:
    """Read the headers of all arrays of a .npz archive; numbers are read when asked for.

    Raises:
        FeatureFileError: not an archive, or a member that is no plain array.
    """
    try:
        archive = zipfile.ZipFile(handle)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FeatureFileError(
            f"{file}: is not a .npz archive, or damaged or cut short: {one_line(error)}"
        ) from None
    tensors: dict[str, StoredTensor] = {}
    for member in archive.infolist():
        if member.is_dir():
            continue
        key = member.filename.removesuffix(".npy")
        if key in tensors:
            raise FeatureFileError(f"{file}: holds two arrays called {key!r}")
        tensors[key] = _open_member(archive, member, file, key)
    if not tensors:
        raise FeatureFileError(f"{file}: the archive holds no arrays")
    return tensors


def _open_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: str, key: str
) -> StoredTensor:
    where = f"{file}[{key}]"
    try:
        with archive.open(member) as stream:
            header = _header(stream, where)
            offset = stream.tell()
    except FeatureFileError:
        raise
    except Exception as error:  # zipfile raises what zlib, struct and the codecs raise
        raise FeatureFileError(f"{where}: cannot be unpacked: {one_line(error)}") from None
    # Deflate packs at most 1,032 to 1: a promise beyond that cannot be kept.
    possible = min(member.file_size - offset, member.compress_size * 1032)
    if header.claimed != possible and not header.dtype.hasobject:
        _refuse_claim(header, possible, where)
    return header.stored(file, key, _Member(archive, member, where), offset, mappable=False)


class _Member:
    """One packed array, unpacked as it is read; damage is reported as such."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
        self._where = where
        # typeshed calls it IO[bytes]; it is the ZipExtFile that has `readinto`.
        self._stream = cast(zipfile.ZipExtFile, archive.open(member))

    def seek(self, offset: int, /) -> int:
        return self._guarded(lambda: self._stream.seek(offset))

    def readinto(self, buffer: memoryview, /) -> int:
        # In small pieces, so that a promise of gigabytes costs only what is really there.
        return self._guarded(lambda: self._stream.readinto(buffer[: 1 << 20]))

    def _guarded(self, call: Callable[[], int]) -> int:
        try:
            return call()
        except Exception as error:
            raise FeatureFileError(
                f"{self._where}: cannot be unpacked: {one_line(error)}"
            ) from None


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    claimed: int

    def stored(
        self, file: str, key: str | None, handle: ByteSource, offset: int, mappable: bool
    ) -> StoredTensor:
        span = Span(handle, offset, self.dtype, self.fortran_order, mappable)
        source = refusal(self.dtype) or span
        return StoredTensor(file, key, self.shape, self.dtype.name, self.claimed, source)


def _refuse_claim(header: _Header, follow: int, where: str) -> None:
    state = "cut short" if header.claimed > follow else "followed by something else"
    raise FeatureFileError(
        f"{where}: is {state}: its header promises {list(header.shape)} {header.dtype.name}, "
        f"{header.claimed:,} bytes, and {max(follow, 0):,} follow"
    )


def _header(stream: BufferedIOBase | IO[bytes], where: str) -> _Header:
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
    return _Header(sizes, fortran_order, dtype, math.prod(sizes) * dtype.itemsize)


def one_line(error: BaseException) -> str:
    """The first line of somebody else's error message, short."""
    lines = str(error).strip().splitlines()
    unnamed = "it ends too early" if isinstance(error, EOFError) else "it cannot be read"
    return shortened(lines[0], 160) if lines else unnamed
