"""The header of a safetensors file: read, checked, and held in little memory.

It is read here, not by the format's own library, because the library finds a file by its name
(which may be another file by then), gives no bfloat16 to numpy and no offsets, and would parse a
header once more. What it refuses is refused here too.

A header can name a million tensors, honest or not. So its entries are parsed one after the other
and held as numbers, in about three times the size of the header.

Source of the format: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any, NamedTuple

import numpy as np

from fusecli.errors import FeatureFileError, shortened
from fusecli.features.formats.limits import read_limit

METADATA_KEY = "__metadata__"  # no tensor can have this name
LARGEST_HEADER = 32 << 20  # bytes, of 400,000 tensors or so; the library stops at 100 MB

# Name in the header, bits of a number, and fusecli's name for the types it reads.
TYPES: dict[str, tuple[int, str | None]] = {
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
_LONGEST_ENTRY = 1 << 16
_SPACE = re.compile(rb"[ \t\n\r]*")
# A tensor's part of a header as all known writers write it, with what follows it: this is
# several times quicker than the way round by json, which reads the others.
_USUAL_ENTRY = re.compile(
    rb'"(?!__metadata__")([^"\\\x00-\x1f]*)": ?'
    rb'\{("dtype": ?"\w{1,16}", ?"shape": ?\[[\d, ]{0,400}\]), ?'
    rb'"data_offsets": ?\[(\d{1,19}), ?(\d{1,19})\]\}(, ?)?'
)
_USUAL_KIND = re.compile(rb'"dtype": ?"(\w+)", ?"shape": ?\[([\d, ]*)\]')


class HeaderEntry(NamedTuple):
    """What a header says of one tensor."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Kind(NamedTuple):
    """What many tensors of a file have in common."""

    code: str
    shape: tuple[int, ...]
    nbytes: int


class HeaderEntries(Mapping[str, HeaderEntry]):
    """The tensors of a header, by key, in its order."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._begins = array("Q")
        self._kinds = array("L")  # places in the list of kinds
        self._known: list[_Kind] = []
        self._numbers: dict[bytes, int] = {}  # of kinds, by what the header says of them
        self._end: int | None = 0  # of the numbers so far; None once tensors stand in another order

    def add(self, key: str, entry: HeaderEntry) -> None:
        """One more tensor.

        Raises:
            ValueError: there is one of this name, it has no known type, or its numbers take
                another number of bytes than it says.
        """
        self._known.append(_kind_of(entry.code, entry.shape, key))
        if key in self._places:
            raise _twice(key)
        self._add(key, len(self._known) - 1, entry.begin, entry.end)

    def add_usual(self, data: bytes, place: int) -> tuple[int, bool]:
        """All tensors from a place on that are written in the usual way.

        Args:
            data: the header.
            place: where a tensor may begin.

        Returns:
            The place behind them, and whether another entry must stand there.

        Raises:
            ValueError: as `add`.
        """
        wanted = True
        match, numbers, places = _USUAL_ENTRY.match, self._numbers, self._places
        known, begins, kinds = self._known, self._begins, self._kinds
        while (usual := match(data, place)) is not None:
            name, said, first, last, comma = usual.groups()
            key = name.decode()
            number = numbers.get(said)
            if number is None:
                number = numbers[said] = len(known)
                known.append(_usual_kind(said, key))
            if key in places:
                raise _twice(key)
            begin, end = int(first), int(last)
            if end - begin == known[number].nbytes:
                places[key] = len(begins)
                begins.append(begin)
                kinds.append(number)
                self._end = end if begin == self._end else None
            else:
                self._add(key, number, begin, end)  # which says what is wrong
            place, wanted = usual.end(), comma is not None
            if not wanted:
                break
        return place, wanted

    def _add(self, key: str, number: int, begin: int, end: int) -> None:
        code, shape, nbytes = self._known[number]
        if nbytes != end - begin:
            raise ValueError(
                f"{shortened(key, 40)!r} has the shape {shortened(str(list(shape)))} of "
                f"{code} and {end - begin:,} bytes"
            )
        self._places[key] = len(self._begins)
        self._begins.append(begin)
        self._kinds.append(number)
        self._end = end if begin == self._end else None

    def check_offsets(self, size: int) -> None:
        """The numbers of all tensors follow each other without a gap, up to the end of the file.

        Args:
            size: bytes that follow the header.

        Raises:
            ValueError: they do not.
        """
        end = self._end if self._end is not None else self._end_sorted()
        if end != size:
            raise ValueError(f"its header promises {end:,} bytes of numbers, and {size:,} follow")

    def _end_sorted(self) -> int:
        begins = np.frombuffer(self._begins, np.uint64)
        lengths = np.array([kind.nbytes for kind in self._known], np.uint64)
        ends = begins + lengths[np.frombuffer(self._kinds, f"u{self._kinds.itemsize}")]
        order = np.lexsort((ends, begins))
        begins, before = begins[order], np.concatenate([np.zeros(1, np.uint64), ends[order]])
        if (wrong := np.flatnonzero(begins != before[:-1])).size:
            place = int(before[wrong[0]])
            raise ValueError(f"its tensors overlap or leave a gap at byte {place:,} of the numbers")
        return int(before[-1])

    def __getitem__(self, key: str) -> HeaderEntry:
        place = self._places[key]
        code, shape, nbytes = self._known[self._kinds[place]]
        begin = self._begins[place]
        return HeaderEntry(code, shape, begin, begin + nbytes)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_header(handle: BufferedReader, file: str) -> tuple[HeaderEntries, dict[str, str], int]:
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
        entries, metadata = _parse(handle.read(length))
        entries.check_offsets(size - 8 - length)
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


def _parse(data: bytes) -> tuple[HeaderEntries, dict[str, str]]:
    """The entries of a header, one after the other.

    json would build all of a hostile header first, which takes twenty times its size.
    """
    entries = HeaderEntries()
    metadata: dict[str, str] | None = None
    place = _skip(data, 0, b"{")
    while data[place : place + 1] != b"}":
        place, wanted = entries.add_usual(data, place)
        if wanted:
            key, place = _string(data, place)
            place = _skip(data, place, b":")
            if key == METADATA_KEY and metadata is not None:
                raise ValueError(f"{METADATA_KEY} stands twice in its header")
            if key == METADATA_KEY:
                metadata, place = _parse_texts(data, place)
            else:
                entry, place = _parse_entry(data, place, key)
                entries.add(key, entry)
        place = _space(data, place)
        if data[place : place + 1] != b"}":
            place = _skip(data, place, b",")
            if data[place : place + 1] == b"}":
                raise ValueError(f"its header is not JSON: expected a text at byte {place:,}")
    if data[place + 1 :].strip(b" \t\n\r\0"):
        raise ValueError("its header goes on after its end")
    return entries, metadata or {}


def _usual_kind(said: bytes, key: str) -> _Kind:
    match = _USUAL_KIND.fullmatch(said)
    assert match is not None
    sizes = match[2].strip()
    shape = tuple(map(int, sizes.split(b","))) if sizes else ()
    return _kind_of(match[1].decode(), shape, key)


def _kind_of(code: str, shape: tuple[int, ...], key: str) -> _Kind:
    if code not in TYPES:
        raise ValueError(f"{shortened(key, 40)!r} has the unknown type {code!r}")
    numbers = 0 if 0 in shape else math.prod(shape)  # which takes long for thousands of axes
    nbytes, rest = divmod(numbers * TYPES[code][0], 8)
    if rest:
        raise ValueError(f"{shortened(key, 40)!r} of {code} ends within a byte")
    return _Kind(code, shape, nbytes)


def _twice(key: str) -> ValueError:
    return ValueError(f"its header names {shortened(key, 40)!r} twice")


def _parse_entry(data: bytes, place: int, key: str) -> tuple[HeaderEntry, int]:
    stop = data.find(b"}", place, place + _LONGEST_ENTRY) + 1
    if not stop:
        raise ValueError(f"its header has no entry for {shortened(key, 40)!r}")
    return _entry_of(json.loads(data[place:stop].decode()), key), stop


def _entry_of(entry: Any, key: str) -> HeaderEntry:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if isinstance(code, str) and lists:
            numbers = (*shape, *offsets)
            if all(type(number) is int and 0 <= number < 1 << 64 for number in numbers):
                return HeaderEntry(code, tuple(shape), *offsets)
    raise ValueError(f"its header has a damaged entry for {shortened(key, 40)!r}")


def _parse_texts(data: bytes, place: int) -> tuple[dict[str, str], int]:
    """A JSON object whose values are all strings."""
    found: dict[str, str] = {}
    place = _skip(data, place, b"{")
    while data[place : place + 1] != b"}":
        if found:
            place = _skip(data, place, b",")
        key, place = _string(data, place)
        place = _skip(data, place, b":")
        found[key], place = _string(data, place)
        place = _space(data, place)
    return found, place + 1


def _string(data: bytes, place: int) -> tuple[str, int]:
    if data[place : place + 1] != b'"':
        raise ValueError(f"its header is not JSON: expected a text at byte {place:,}")
    stop = place
    while True:
        stop = data.find(b'"', stop + 1)
        if stop < 0:
            raise ValueError(f"its header is not JSON: a text breaks off at {place:,}")
        first = stop
        while data[first - 1] == ord("\\"):
            first -= 1
        if (stop - first) % 2 == 0:  # a quotation mark behind a single \ is part of the text
            break
    try:
        found: str = json.loads(data[place : stop + 1].decode())
    except UnicodeDecodeError:
        raise
    except ValueError:
        raise ValueError(f"its header is not JSON: a damaged text at byte {place:,}") from None
    return found, stop + 1


def _skip(data: bytes, place: int, mark: bytes) -> int:
    """The place behind a mark and the white space around it."""
    place = _space(data, place)
    if data[place : place + 1] != mark:
        raise ValueError(f"its header is not JSON: expected {mark.decode()} at byte {place:,}")
    return _space(data, place + 1)


def _space(data: bytes, place: int) -> int:
    match = _SPACE.match(data, place)
    return place if match is None else match.end()
