"""Safetensors files: with `safetensors_header`, which reads headers, all that knows their layout.

Eight bytes of length, a JSON header, then the numbers of all tensors without a gap.

Source of the format: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from io import BufferedReader
from typing import IO, Any

from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.dtypes import storage_type
from fusecli.features.formats.base import (
    Buffers,
    Encode,
    FileContents,
    OutputContents,
    bytes_of,
)
from fusecli.features.formats.safetensors_header import (
    METADATA_KEY,
    TYPES,
    HeaderEntries,
    read_header,
)
from fusecli.features.literals import OutDtype
from fusecli.features.tensor import (
    FileBytes,
    ManyTensors,
    Span,
    StoredTensor,
    TensorSource,
    Unreadable,
)

_CODES = {name: code for code, (_, name) in TYPES.items() if name is not None}
_KEPT_HEADERS = 4096
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


class SafetensorsFormat:
    """Tensors by name."""

    called = "a sound .safetensors file"
    has_keys = True
    dtypes: tuple[OutDtype, ...] = ("float32", "float16", "bfloat16")

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
        return FileContents(_Tensors(handle, file, entries, start), metadata)

    def sink(self, file: IO[bytes], folder: str, contents: OutputContents) -> SafetensorsSink:
        """As `WritableFormat.sink`."""
        return SafetensorsSink(file, contents)

    def encoder(self, dtype: OutDtype, metadata: dict[str, Any]) -> Encode:
        """As `WritableFormat.encoder`."""
        described = {"fusecli": json.dumps(metadata)}
        header = lru_cache(_KEPT_HEADERS)(lambda shapes: file_start(dict(shapes), dtype, described))

        def encode(tensors: Mapping[str, NDArray[Any]]) -> Buffers:
            shapes = tuple((name, tensor.shape) for name, tensor in tensors.items())
            return [header(shapes), *map(bytes_of, tensors.values())]

        return encode


FORMAT = SafetensorsFormat()


class _Tensors(ManyTensors):
    """The tensors of an open file; each is made when it is asked for, since there may be many."""

    def __init__(
        self, handle: BufferedReader, file: str, entries: HeaderEntries, start: int
    ) -> None:
        self._source, self._file, self._entries, self._start = (
            FileBytes(handle), file, entries, start
        )  # fmt: skip

    def __getitem__(self, key: str) -> StoredTensor:
        code, shape, begin, end = self._entries[key]
        name = TYPES[code][1]
        numbers: TensorSource = (
            Unreadable(f"holds {code}, which fusecli does not read")
            if name is None
            else Span(self._source, self._start + begin, storage_type(name))
        )
        return StoredTensor(self._file, key, shape, name or code, end - begin, numbers)

    def shape_of(self, key: str) -> tuple[int, ...]:
        return self._entries[key].shape

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


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
    shapes: Mapping[str, tuple[int, ...]], dtype: OutDtype, metadata: Mapping[str, str]
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
