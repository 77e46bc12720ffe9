"""Results as the bytes of files, in any format."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.features.writer import npy_header, safetensors_header

Buffers = list[bytes | memoryview]


class Encoder:
    """Makes files.

    Args:
        dtype: of the numbers: "float32", "float16" or "bfloat16".
        metadata: of safetensors files.
    """

    def __init__(self, dtype: str, metadata: dict[str, Any]) -> None:
        # Most results of a run have one of a few shapes.
        self._npy_header = lru_cache(4096)(lambda shape: npy_header(shape, dtype))
        self._safetensors_header = lru_cache(4096)(
            lambda shapes, sizes: safetensors_header(dict(shapes), dtype, list(sizes), metadata)
        )

    def encode(self, tensors: Mapping[str, NDArray[Any]], ending: str) -> Buffers:
        """The file's bytes, in pieces.

        Args:
            tensors: by name, as they are stored (bfloat16 as its bits), contiguous.
            ending: ".npy" (of one tensor), ".npz" or ".safetensors".
        """
        data: list[memoryview] = [bytes_of(tensor) for tensor in tensors.values()]
        if ending == ".safetensors":
            shapes = tuple((name, tensor.shape) for name, tensor in tensors.items())
            return [self._safetensors_header(shapes, tuple(map(len, data))), *data]
        headers = [self._npy_header(tensor.shape) for tensor in tensors.values()]
        if ending == ".npz":
            return [_archived(zip(tensors, headers, data, strict=True))]
        return [headers[0], data[0]]


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    flat: memoryview = array.reshape(-1).view(np.uint8).data
    return flat


def _archived(members: Iterable[tuple[str, bytes, memoryview]]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, header, data in members:
            # A fixed date: the same result is the same bytes.
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as file:
                file.write(header)
                file.write(data)
    return sink.getvalue()


def tensor_entry(key: str, code: str, shape: tuple[int, ...], begin: int, end: int) -> bytes:
    """One tensor's entry in the header of a safetensors file."""
    entry = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    return f"{json.dumps(key)}:{json.dumps(entry, separators=(',', ':'))}".encode()
