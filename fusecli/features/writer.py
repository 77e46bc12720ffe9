"""Results on disk: whole or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk, and
renamed. Formats are told by the ending. Rows arrive in chunks, so that a stack larger than
memory can be written.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fusecli.errors import OutputError
from fusecli.features.atomic import StagedFile, StagedStdout
from fusecli.features.dtypes import from_float32, storage_type

ENDINGS = (".npy", ".npz", ".safetensors")
OUT_DTYPES = ("float32", "float16", "bfloat16")
FUSED_KEY = "fused"
ATTENTION_KEY = "attention"
SAFETENSORS_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class FeatureWriter:
    """Writes tensors side by side, chunk by chunk, in the format its file's ending asks for.

    Args:
        path: where it goes; "-" is .npy on stdout.
        shape: of the whole tensor.
        dtype: "float32", "float16" or "bfloat16".
        metadata: plain data for the file's own metadata (safetensors only).
        key: name of the tensor, in formats that have names.
        further: names and shapes of tensors besides it (not in .npy).
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: str,
        metadata: dict[str, Any],
        key: str = FUSED_KEY,
        further: Mapping[str, tuple[int, ...]] = {},
    ) -> None:
        self._dtype, self._path, self._metadata = dtype, path, metadata
        self._shapes = {key: shape, **further}
        size = storage_type(dtype).itemsize
        self._sizes = [math.prod(shape) * size for shape in self._shapes.values()]
        self.staged = StagedStdout() if path == "-" else StagedFile(path)
        self._archive: zipfile.ZipFile | None = None
        # Where the numbers of each tensor go: into the file, an archive's member, or (further
        # ones of an archive, which takes one member at a time) a file beside it.
        self._sinks: list[Any] = [self.staged] * len(self._shapes)
        self._places: list[int] | None = None  # of each next number, where tensors share a file

    def begin(self) -> FeatureWriter:
        """Make the file and write the format's header.

        Raises:
            OutputError: the folder or the disk does not allow it.
        """
        self.staged.begin()
        ending = os.path.splitext(self._path)[1].lower()
        if ending == ".safetensors":
            header = safetensors_header(self._shapes, self._dtype, self._sizes, self._metadata)
            self._write(0, header)
            self._places = [len(header) + sum(self._sizes[:i]) for i in range(len(self._sizes))]
            return self
        first = next(iter(self._shapes))
        if ending == ".npz":
            self._archive = zipfile.ZipFile(self.staged.handle, "w")
            self._sinks = [self._member(first)]
            self._sinks += [self._beside() for _ in self._sizes[1:]]
        self._write(0, npy_header(self._shapes[first], self._dtype))
        return self

    def _beside(self) -> IO[bytes]:
        import tempfile

        try:
            return tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(self._path)))
        except OSError as error:
            raise self.staged.failed(error) from None

    def _member(self, key: str) -> IO[bytes]:
        assert self._archive is not None
        # A fixed date: the same result is the same bytes.
        member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        return self._archive.open(member, "w", force_zip64=True)

    @property
    def key(self) -> str | None:
        """Name of the (first) tensor in the file; .npy has none."""
        named = self._path.lower().endswith((".safetensors", ".npz"))
        return next(iter(self._shapes)) if named else None

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, without the file's header."""
        return sum(self._sizes)

    def append(self, rows: NDArray[np.float32], *further: NDArray[np.float32]) -> None:
        """Write the next rows, of further tensors too, rounded to the output type.

        Raises:
            OutputError: the disk is full, or a number does not fit the type.
        """
        for index, part in enumerate((rows, *further)):
            stored = np.ascontiguousarray(from_float32(part, self._dtype))
            narrow = self._dtype == "float16"
            if narrow and not np.isfinite(stored).all() and np.isfinite(part).all():
                raise OutputError(
                    f"{self._path}: fused values reach {np.abs(part).max():.3g} and float16 ends "
                    "at 65504: say --out-dtype float32"
                )
            self._write(index, stored.reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Close the format; the file is complete under its temporary name."""
        try:
            if self._archive is not None:
                self._sinks[0].close()
                for (key, shape), held in zip(
                    list(self._shapes.items())[1:], self._sinks[1:], strict=True
                ):
                    held.seek(0)
                    with self._member(key) as member:
                        member.write(npy_header(shape, self._dtype))
                        shutil.copyfileobj(held, member, 1 << 20)
                self._archive.close()
        except OSError as error:
            raise self.staged.failed(error) from None
        self.staged.flush()

    def publish(self) -> None:
        """Give the file its name, or copy it to stdout.

        Raises:
            OutputError: the folder, the disk or the reader of stdout does not take it.
        """
        self.staged.publish()

    def _write(self, index: int, data: bytes | memoryview) -> None:
        try:
            if self._places is not None and len(self._places) > 1:
                self.staged.handle.seek(self._places[index])
                self._places[index] += len(data)
            self._sinks[index].write(data)
        except OSError as error:
            raise self.staged.failed(error) from None

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._archive is not None:
            for sink in self._sinks:
                with contextlib.suppress(OSError, ValueError):
                    sink.close()
            with contextlib.suppress(OSError, ValueError):
                self._archive.close()
        self.staged.__exit__(*error)


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = {"descr": storage_type(dtype).str, "fortran_order": False, "shape": shape}
    sink = io.BytesIO()
    npy_format.write_array_header_1_0(sink, header)
    return sink.getvalue()


def safetensors_header(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    sizes: list[int],
    metadata: dict[str, Any],
) -> bytes:
    """Eight bytes of length and JSON, padded with spaces to a multiple of 8.

    Written here because the library's writer wants the whole tensors in memory.
    Source: the format section of the safetensors README.
    """
    entries: dict[str, Any] = {"__metadata__": {"fusecli": json.dumps(metadata)}}
    begin = 0
    for (key, shape), nbytes in zip(shapes.items(), sizes, strict=True):
        offsets = [begin, begin + nbytes]
        entries[key] = {
            "dtype": SAFETENSORS_CODES[dtype],
            "shape": shape,
            "data_offsets": offsets,
        }
        begin += nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
