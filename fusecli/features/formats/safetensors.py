"""Safetensors files: checked by their own library, read without loading them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

import safetensors

from fusecli.errors import FeatureFileError
from fusecli.features.dtypes import SAFETENSORS_TYPES, storage_type
from fusecli.features.formats.npy import one_line
from fusecli.features.tensor import Span, StoredTensor


def safetensors_keys(handle: BufferedIOBase, path: str, file: str) -> list[str]:
    """The keys of a safetensors file, and nothing else of its header.

    Args and Raises: those of `open_safetensors`, but a file without tensors has no keys.
    """
    with _checked(handle, path, file) as checked:
        return list(checked.keys())


def open_safetensors(
    handle: BufferedIOBase, path: str, file: str
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read the header of a safetensors file.

    Args:
        handle: the open file, at its start.
        path: where the library finds it.
        file: its name for messages.

    Returns:
        The tensors by key, and the file's own metadata.

    Raises:
        FeatureFileError: the library refuses the file (damaged, truncated, overlapping
            tensors, an oversized header), or it holds no tensors.
    """
    with _checked(handle, path, file) as checked:
        metadata = dict(checked.metadata() or {})
    # The library hands out no bfloat16 to numpy and no offsets, so the header, which it
    # has just checked, is read once more for them: 8 bytes of length, then JSON.
    length = int.from_bytes(handle.read(8), "little")
    header = json.loads(handle.read(length))
    tensors: dict[str, StoredTensor] = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        name = SAFETENSORS_TYPES.get(entry["dtype"])
        source: Span | str = f"holds {entry['dtype']}, which fusecli does not read"
        if name is not None:
            source = Span(handle, 8 + length + begin, storage_type(name))
        shape = tuple(entry["shape"])
        tensors[key] = StoredTensor(file, key, shape, name or entry["dtype"], end - begin, source)
    if not tensors:
        raise FeatureFileError(f"{file}: holds no tensors")
    return tensors, metadata


@contextmanager
def _checked(handle: BufferedIOBase, path: str, file: str) -> Iterator[Any]:
    """The file as the library opens it, which checks the whole header."""
    try:
        with safetensors.safe_open(path, framework="np") as checked:
            yield checked
    except MemoryError:
        raise FeatureFileError(f"{file}: does not fit into this process's memory") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        size = handle.seek(0, 2)
        empty = " (the file is empty)" if size == 0 else ""
        raise FeatureFileError(
            f"{file}: is not a sound .safetensors file but damaged or cut short, or another "
            f"format: {one_line(error)}{empty}"
        ) from None
