"""NumPy's .npy: headers read by numpy, what they promise compared with the file."""

from __future__ import annotations

import io
import math
import os
import re
import tokenize
import warnings
from collections.abc import Mapping
from functools import lru_cache
from io import BufferedIOBase, BufferedReader
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shortened, shown_path
from fusecli.features.dtypes import refusal, storage_type
from fusecli.features.formats.base import (
    Buffers,
    Encode,
    FileContents,
    OutputContents,
    bytes_of,
    one_line,
)
from fusecli.features.literals import OutDtype
from fusecli.features.tensor import (
    ByteSource,
    FileBytes,
    MemoryBytes,
    Span,
    StoredTensor,
    TensorSource,
    Unreadable,
)
from fusecli.records import record

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
_DESCR = re.compile(rb"('descr': ?')([\w<>|=]{1,80})'")
# Types that are known by name, and what np.save makes of float8_e5m2.
_ML_DTYPES = {
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "f1": "float8_e5m2",
}
_RAW_NUMBERS = (
    ": for numbers alone, as tofile writes them, use numpy.fromfile(FILE, DTYPE).reshape(ROWS, "
    "WIDTH) and numpy.save"
)
_STARTS_OF_PICKLES = (400, 300, 200, 150, 100)  # bytes that hold the first object of an array
_PLAIN_NAME = re.compile(r"[\w./ +=@,~-]+")  # needs no quotes in a shell's or in Python's text
_KEPT_HEADERS = 4096


class NpyFormat:
    """One array without a name."""

    called = "a .npy file"
    has_keys = False
    dtypes: tuple[OutDtype, ...] = ("float32", "float16")

    def recognises(self, handle: BufferedReader) -> bool:
        """As `Format.recognises`."""
        return handle.read(npy_format.MAGIC_LEN).startswith(npy_format.MAGIC_PREFIX)

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """As `Format.open`."""
        size = os.fstat(handle.fileno()).st_size
        return FileContents({"": open_npy(handle, size, file, FileBytes(handle))})

    def sink(self, file: IO[bytes], folder: str, contents: OutputContents) -> NpySink:
        """As `WritableFormat.sink`."""
        return NpySink(file, contents)

    def encoder(self, dtype: OutDtype, metadata: dict[str, Any]) -> Encode:
        """As `WritableFormat.encoder`."""
        header = lru_cache(_KEPT_HEADERS)(lambda shape: npy_header(shape, dtype))

        def encode(tensors: Mapping[str, NDArray[Any]]) -> Buffers:
            (tensor,) = tensors.values()
            return [header(tensor.shape), bytes_of(tensor)]

        return encode


FORMAT = NpyFormat()


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


def npy_header(shape: tuple[int, ...], dtype: OutDtype) -> bytes:
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


@record
class NpyHeader:
    """What the header of an array says.

    Attributes:
        dtype: of the bytes.
        nbytes: of the numbers that should follow.
        known: fusecli's name for the type, where numpy has none; "" where it has.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    nbytes: int
    known: str = ""

    def check_size(self, follow: int, where: str) -> None:
        """Compare the promise with the bytes that follow; pickled objects promise no size.

        Raises:
            FeatureFileError: they are not as many.
        """
        if self.nbytes == follow or self.dtype.hasobject:
            return
        state = "cut short" if self.nbytes > follow else "followed by something else"
        raise FeatureFileError(
            f"{where}: is {state}: its header promises {list(self.shape)} "
            f"{self.known or self.dtype.name}, "
            f"{self.nbytes:,} bytes, and {max(follow, 0):,} follow"
        )

    def stored(self, file: str, key: str | None, source: ByteSource, offset: int) -> StoredTensor:
        """The tensor whose numbers begin at `offset` of `source`."""
        problem = None if self.known else refusal(self.dtype)
        name = self.known or self.dtype.name
        if problem is not None:
            numbers: TensorSource = Unreadable(problem + self._remedy(file, key, source, offset))
        else:
            numbers = Span(source, offset, self.dtype, self.fortran_order)
        return StoredTensor(file, key, self.shape, name, self.nbytes, numbers)

    def _remedy(self, file: str, key: str | None, source: ByteSource, offset: int) -> str:
        """How a person makes features of something that is not read."""
        plain = _PLAIN_NAME.fullmatch(file + (key or "")) is not None
        load = f"n.load({file if plain else 'FILE'!r}, allow_pickle=True)"
        if key is not None:
            load += f"[{key if plain else 'KEY'!r}]"
        if self.dtype.str[1:] == "V2":
            load = load.replace(", allow_pickle=True", "")
            return (
                ': save bfloat16 as .safetensors, or as float32: python -c "import numpy as n; '
                f"n.save('NEW.npy', ({load}.view('u2').astype('u4') << 16).view('f4'))\""
            )
        if not self.dtype.hasobject or self.dtype.names is not None:
            return ""
        if not self.shape:  # np.save of a dict, most often
            of = "a dict of arrays"
            new = f"import numpy as n; n.savez('NEW.npz', **{load}.item())"
        elif _begins_with_dict(_first_bytes(source, offset)):
            of = "a dict for each sample (makes a file for each)"
            new = (
                "import os, numpy as n; os.mkdir('NEW'); "
                f"[n.savez(f'NEW/{{k}}.npz', **d) for k, d in enumerate({load})]"
            )
        else:  # np.save of a list of arrays that differ in length
            of = "arrays of several lengths"
            new = (
                f"import numpy as n; a = {load}; k = [len(x) for x in a]; "
                "f = n.zeros((len(a), max(k), len(a[0][0])),"
                " 'f4'); [n.copyto(y[:len(x)], x) for x, y in zip(a, f)]; "
                "n.savez('NEW.npz', features=f, lengths=k)"
            )
        return f': if you trust it and it is {of}: python -c "{new}"'


def _first_bytes(source: ByteSource, offset: int) -> bytes:
    """The first bytes of a pickle, as many as there are of those that are wanted."""
    for size in _STARTS_OF_PICKLES:
        start = bytearray(size)
        try:
            source.read_into(offset, memoryview(start))
        except (EOFError, OSError):
            continue
        return bytes(start)
    return b""


def _begins_with_dict(pickled: bytes) -> bool:
    """Whether the objects of a pickled array are dicts; nothing is unpickled.

    Args:
        pickled: the first bytes of the pickle.
    """
    from pickletools import genops

    in_list = False
    try:
        for opcode, _, _ in genops(pickled):
            if in_list and opcode.name not in ("MEMOIZE", "MARK", "PUT", "BINPUT", "LONG_BINPUT"):
                return opcode.name == "EMPTY_DICT"
            in_list = in_list or opcode.name == "EMPTY_LIST"  # of the array's objects
    except (ValueError, IndexError):  # cut off here, or damaged
        pass
    return False


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
        raw = _RAW_NUMBERS if where.lower().endswith(".npy") else ""
        raise FeatureFileError(f"{where}: is not a .npy file{hint or raw}")
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
    text = stream.read(length)
    known = ""
    if len(text) == length:  # else numpy says that it is cut short
        text, known = _with_known_type(text, where)
        prefix = len(text).to_bytes(width, "little")
    header = io.BytesIO(prefix + text)
    read = npy_format.read_array_header_1_0 if width == 2 else npy_format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            shape, fortran_order, dtype = read(header)
    except _BROKEN as error:
        why = "descr names no type" if isinstance(error, IndexError) else one_line(error)
        raise FeatureFileError(f"{where}: has a damaged .npy header: {why}") from None
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise FeatureFileError(f"{where}: has a damaged .npy header: shape {list(shape)}")
    sizes = tuple(int(size) for size in shape)
    return NpyHeader(sizes, fortran_order, dtype, math.prod(sizes) * dtype.itemsize, known)


def _with_known_type(header: bytes, where: str) -> tuple[bytes, str]:
    """A header that numpy can read, and fusecli's name of its type where numpy has none.

    numpy does not know the types of ml_dtypes, and what np.save writes for them differs:
    float8_e5m2 is "<f1", the others are raw bytes ("<V1", "<V2"); other writers put the name.

    Raises:
        FeatureFileError: the type is none that fusecli reads.
    """
    found = _DESCR.search(header)
    if found is None:
        return header, ""
    descr = found[2].decode("latin1")
    name = _ML_DTYPES.get(descr.lstrip("<|="))
    if name is not None:
        return header.replace(found[0], found[1] + storage_type(name).str.encode() + b"'"), name
    try:
        np.dtype(descr)
    except (TypeError, ValueError, SyntaxError, KeyError):
        raise FeatureFileError(
            f"{where}: has a damaged .npy header or numbers of a type that numpy does not know, "
            f"{shortened(descr, 40)!r}: convert them to float32 where they were made"
        ) from None
    return header, ""
