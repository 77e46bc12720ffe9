"""Safetensors files: the only module that knows their layout.

Eight bytes of length, a JSON header, then the numbers of all tensors without a gap. The header is
read here, not by the format's own library, because the library finds a file by its name (which
may be another file by then), gives no bfloat16 to numpy and no offsets, and would parse a header
once more. What it refuses is refused here too.

Source of the format: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import BufferedReader
from json.decoder import scanstring  # type: ignore[attr-defined]
from operator import itemgetter
from typing import IO, Any, NamedTuple

from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shortened
from fusecli.features.dtypes import storage_type
from fusecli.features.formats.base import (
    Buffers,
    Encode,
    FileContents,
    OutputContents,
    bytes_of,
)
from fusecli.features.formats.limits import read_limit
from fusecli.features.tensor import FileBytes, Span, StoredTensor, TensorSource, Unreadable

METADATA_KEY = "__metadata__"  # no tensor can have this name
LARGEST_HEADER = 64 << 20  # bytes; the library itself stops at 100 MB

# Name in the header, bits of a number, and fusecli's name for the types it reads.
_TYPES: dict[str, tuple[int, str | None]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
    "C64": (64, None),
    "F8_E8M0": (8, None),
    "F8_E4M3FNUZ": (8, None),
    "F8_E5M2FNUZ": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
}
_CODES = {name: code for code, (_, name) in _TYPES.items() if name is not None}
_LONGEST_ENTRY = 1 << 16
_KEPT_HEADERS = 4096
_SPACE = re.compile(r"[ \t\n\r]*")
# A tensor's part of a header as all known writers write it, with what follows it: this is
# several times quicker than the way round by json, which reads the others.
_USUAL_ENTRY = re.compile(
    r'"([^"\\\x00-\x1f]*)": ?\{"dtype": ?"(\w+)", ?"shape": ?\[([\d, ]{0,400})\], ?'
    r'"data_offsets": ?\[(\d{1,19}), ?(\d{1,19})\]\}(, ?)?'
)
# A header as this module writes it piece by piece: its start with the file's metadata, and each
# entry behind a comma. A header that is read back is compared with these, not merely parsed.
_WRITTEN_TEXT = rb'"((?:[^"\\]|\\.)*)"'
WRITTEN_START = re.compile(rb'\{"__metadata__": \{"fusecli": ' + _WRITTEN_TEXT + rb"\}")
WRITTEN_ENTRY = re.compile(
    rb"," + _WRITTEN_TEXT + rb':\{"dtype":"(\w{1,16})","shape":\[([\d,]*)\],'
    rb'"data_offsets":\[(\d{1,18}),(\d{1,18})\]\}'
)
_LAST_OFFSET = re.compile(rb'"data_offsets":\[\d+,(\d+)\]\}\}$')
_LONGEST_END = 80  # of a header, in which its last offset stands


class HeaderEntry(NamedTuple):
    """What a header says of one tensor."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFormat:
    """Tensors by name."""

    called = "a sound .safetensors file"
    has_keys = True
    dtypes = ("float32", "float16", "bfloat16")

    def recognises(self, handle: BufferedReader) -> bool:
        """As `Format.recognises`."""
        start = handle.read(9)
        length = int.from_bytes(start[:8], "little")
        return start[8:] == b"{" and 8 + length <= os.fstat(handle.fileno()).st_size

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """As `Format.open`."""
        entries, metadata, start = read_header(handle, file)
        if not entries:
            raise FeatureFileError(f"{file}: holds no tensors")
        source = FileBytes(handle)
        tensors: dict[str, StoredTensor] = {}
        for key, entry in entries.items():
            name = _TYPES[entry.code][1]
            numbers: TensorSource = (
                Unreadable(f"holds {entry.code}, which fusecli does not read")
                if name is None
                else Span(source, start + entry.begin, storage_type(name))
            )
            tensors[key] = StoredTensor(
                file, key, entry.shape, name or entry.code, entry.end - entry.begin, numbers
            )
        return FileContents(tensors, metadata)

    def sink(self, file: IO[bytes], folder: str, contents: OutputContents) -> SafetensorsSink:
        """As `WritableFormat.sink`."""
        return SafetensorsSink(file, contents)

    def encoder(self, dtype: str, metadata: dict[str, Any]) -> Encode:
        """As `WritableFormat.encoder`."""
        described = {"fusecli": json.dumps(metadata)}
        header = lru_cache(_KEPT_HEADERS)(lambda shapes: file_start(dict(shapes), dtype, described))

        def encode(tensors: Mapping[str, NDArray[Any]]) -> Buffers:
            shapes = tuple((name, tensor.shape) for name, tensor in tensors.items())
            return [header(shapes), *map(bytes_of, tensors.values())]

        return encode


FORMAT = SafetensorsFormat()


class SafetensorsSink:
    """Writes tensors, chunk by chunk, each into its own part of the file."""

    def __init__(self, file: IO[bytes], contents: OutputContents) -> None:
        self._file, self._contents = file, contents
        self._next: list[int] = []  # where the next numbers of each tensor go

    def begin(self) -> None:
        contents = self._contents
        metadata = {"fusecli": json.dumps(contents.metadata)}
        start = file_start(contents.shapes, contents.dtype, metadata)
        self._file.write(start)
        place = len(start)
        for shape in contents.shapes.values():
            self._next.append(place)
            place += math.prod(shape) * storage_type(contents.dtype).itemsize

    def write(self, index: int, data: memoryview) -> None:
        if len(self._next) > 1:
            self._file.seek(self._next[index])
            self._next[index] += len(data)
        self._file.write(data)

    def finish(self) -> None:
        pass

    def discard(self) -> None:
        pass


# ------------------------------------------------------------------------------- writing


def file_start(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, metadata: Mapping[str, str]
) -> bytes:
    """Everything before the numbers of a file whose tensors have one type.

    Args:
        shapes: of the tensors, in the order in which their numbers follow.
        dtype: of all numbers.
        metadata: the file's own, texts by name; empty for none.
    """
    entries: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    itemsize, begin = storage_type(dtype).itemsize, 0
    for key, shape in shapes.items():
        end = begin + math.prod(shape) * itemsize
        entries[key] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return with_length(json.dumps(entries).encode())


def with_length(header: bytes, room: int | None = None) -> bytes:
    """A header with its length before it, padded with spaces.

    Args:
        header: the JSON.
        room: bytes that the result takes; None for the next multiple of 8.
    """
    header += b" " * (-len(header) % 8 if room is None else room - 8 - len(header))
    return len(header).to_bytes(8, "little") + header


def header_entry(key: str, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> bytes:
    """One tensor's part of a header that is put together by the caller.

    Args:
        key: its name.
        dtype: "float32", "float16" or "bfloat16".
        shape: its shape.
        begin, end: where its numbers are, in bytes after the header.
    """
    entry = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    return f"{json.dumps(key)}:{json.dumps(entry, separators=(',', ':'))}".encode()


def promised_size(file: IO[bytes], longest: int) -> int | None:
    """Bytes a file should have, from the end of a header that `header_entry` made.

    Reads no more than `longest` bytes of the header, and does not parse it.

    Returns:
        The size, or None where the header does not end as expected.

    Raises:
        OSError: the file cannot be read.
    """
    length = int.from_bytes(file.read(8), "little")
    header = file.read(min(length, longest)).rstrip()
    last = _LAST_OFFSET.search(header[-_LONGEST_END:])  # tensors stand in the order of numbers
    return None if last is None else 8 + length + int(last[1])


# ------------------------------------------------------------------------------- reading


def safetensors_keys(handle: BufferedReader, file: str) -> list[str]:
    """The keys of a file, by the library: twice as quick as `read_header` for many.

    Raises:
        FeatureFileError: as `read_header`.
    """
    import safetensors

    try:
        _header_length(handle, os.fstat(handle.fileno()).st_size, file)
        with safetensors.safe_open(file, framework="np") as checked:
            return list(checked.keys())
    except (safetensors.SafetensorError, OSError, ValueError, MemoryError):
        pass
    handle.seek(0)
    return list(read_header(handle, file)[0])  # which says what is wrong


def read_header(
    handle: BufferedReader, file: str
) -> tuple[dict[str, HeaderEntry], dict[str, str], int]:
    """Read and check the header of a file.

    Args:
        handle: the open file, at its start.
        file: its name for messages.

    Returns:
        What it says of each tensor, the file's own metadata, and where the numbers begin.

    Raises:
        FeatureFileError: damaged, cut short, overlapping tensors, or a header too large.
    """
    size = os.fstat(handle.fileno()).st_size
    try:
        length = _header_length(handle, size, file)
        text = handle.read(length).decode()
        entries, metadata = _parse(text)
        _check_offsets(entries.values(), size - 8 - length)
    except MemoryError:
        raise FeatureFileError(f"{file}: does not fit into this process's memory") from None
    except OSError as error:
        raise FeatureFileError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError, RecursionError) as error:
        empty = " (the file is empty)" if size == 0 else ""
        said = "its header is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise FeatureFileError(
            f"{file}: is not a sound .safetensors file but damaged or cut short, or another "
            f"format: {shortened(said, 160)}{empty}"
        ) from None
    return entries, metadata, 8 + length


def _header_length(handle: BufferedReader, size: int, file: str) -> int:
    """Bytes of the header, which is what is read next.

    Raises:
        FeatureFileError: more than the limit.
        ValueError: this is no header.
    """
    length = int.from_bytes(handle.read(8), "little")
    if 8 + length > size:
        raise ValueError(f"its header would be {length:,} bytes long")
    if handle.peek(1)[:1] != b"{":
        raise ValueError("its header does not begin with {")
    limit = read_limit(LARGEST_HEADER)
    if length > limit:
        raise FeatureFileError(
            f"{file}: its header is {length:,} bytes long, more than {limit:,}: split it "
            "into files of fewer tensors, or raise the bound with "
            f"FUSECLI_READ_LIMIT={-(-length >> 20)}M"
        )
    return length


def _parse(text: str) -> tuple[dict[str, HeaderEntry], dict[str, str]]:
    """The entries of a header, one after the other.

    json would build all of a hostile header first, which takes twenty times its size.
    """
    entries: dict[str, HeaderEntry] = {}
    metadata: dict[str, str] | None = None
    place = _skip(text, 0, "{")
    done = text[place : place + 1] == "}"
    while not done:
        usual = _USUAL_ENTRY.match(text, place)
        if usual is not None and usual[1] != METADATA_KEY:
            key, code, sizes, begin, end, comma = usual.groups()
            shape = tuple(map(int, sizes.split(","))) if sizes else ()
            entry, place = HeaderEntry(code, shape, int(begin), int(end)), usual.end()
        else:
            comma = None
            key, place = _string(text, place)
            place = _skip(text, place, ":")
            if key == METADATA_KEY:
                if metadata is not None:
                    raise ValueError(f"{METADATA_KEY} stands twice in its header")
                metadata, place = _parse_texts(text, place)
                entry = None
            else:
                entry, place = _parse_entry(text, place, key)
        if entry is not None:
            if key in entries:
                raise ValueError(f"its header names {shortened(key, 40)!r} twice")
            _check_size(key, entry)
            entries[key] = entry
        if comma is None:
            place = _space(text, place)
            done = text[place : place + 1] == "}"
            if not done:
                place = _skip(text, place, ",")
    if text[place + 1 :].strip(" \t\n\r\0"):
        raise ValueError("its header goes on after its end")
    return entries, metadata or {}


def _check_size(key: str, entry: HeaderEntry) -> None:
    if entry.code not in _TYPES:
        raise ValueError(f"{shortened(key, 40)!r} has the unknown type {entry.code!r}")
    bits = math.prod(entry.shape) * _TYPES[entry.code][0]
    if bits != 8 * (entry.end - entry.begin):
        raise ValueError(
            f"{shortened(key, 40)!r} has the shape {shortened(str(list(entry.shape)))} of "
            f"{entry.code} and {entry.end - entry.begin:,} bytes"
        )


def _parse_entry(text: str, place: int, key: str) -> tuple[HeaderEntry, int]:
    stop = text.find("}", place, place + _LONGEST_ENTRY) + 1
    if not stop:
        raise ValueError(f"its header has no entry for {shortened(key, 40)!r}")
    return _entry_of(json.loads(text[place:stop]), key), stop


def _entry_of(entry: Any, key: str) -> HeaderEntry:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if isinstance(code, str) and lists:
            numbers = (*shape, *offsets)
            if all(type(number) is int and 0 <= number < 1 << 64 for number in numbers):
                return HeaderEntry(code, tuple(shape), *offsets)
    raise ValueError(f"its header has a damaged entry for {shortened(key, 40)!r}")


def _parse_texts(text: str, place: int) -> tuple[dict[str, str], int]:
    """A JSON object whose values are all strings."""
    found: dict[str, str] = {}
    place = _skip(text, place, "{")
    while text[place : place + 1] != "}":
        if found:
            place = _skip(text, place, ",")
        key, place = _string(text, place)
        place = _skip(text, place, ":")
        found[key], place = _string(text, place)
        place = _space(text, place)
    return found, place + 1


def _string(text: str, place: int) -> tuple[str, int]:
    if text[place : place + 1] != '"':
        raise ValueError(f"its header is not JSON: expected a text at character {place:,}")
    try:
        found: tuple[str, int] = scanstring(text, place + 1, True)
    except ValueError:
        raise ValueError(f"its header is not JSON: a text breaks off at {place:,}") from None
    return found


def _skip(text: str, place: int, mark: str) -> int:
    """The place behind a mark and the white space around it."""
    place = _space(text, place)
    if text[place : place + 1] != mark:
        raise ValueError(f"its header is not JSON: expected {mark} at character {place:,}")
    return _space(text, place + 1)


def _space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return place if match is None else match.end()


def _check_offsets(entries: Iterable[HeaderEntry], size: int) -> None:
    """The numbers of all tensors follow each other without a gap, up to the end of the file."""
    end = 0
    for entry in sorted(entries, key=itemgetter(2, 3)):  # begin, end
        if entry.begin != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {end:,} of the numbers")
        end = entry.end
    if end != size:
        raise ValueError(f"its header promises {end:,} bytes of numbers, and {size:,} follow")
