"""The list of bad files, and how each is made.

A case is a function that writes a file named hostile.* and returns the arguments of `fuse`.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusecli.fusion.config import FusionConfig

GIB = 1 << 30
BOMB = 600 << 20
IMAGE = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
TEXT = np.linspace(1, -1, 32, dtype=np.float32).reshape(4, 8)
CONFIG = FusionConfig(embed_dim=8, num_heads=2)
Make = Callable[[], list[str]]  # writes a file, and returns the arguments of `fuse`

CASES: list[object] = []
LARGE: list[object] = []  # these promise gigabytes: run in a process of their own, with a limit


def hostile(says: str, large: bool = False) -> Callable[[Make], Make]:
    """Add a case: what the error must say, as a regular expression."""

    def add(make: Make) -> Make:
        (LARGE if large else CASES).append(pytest.param(make, says, id=make.__name__))
        return make

    return add


def hostile_bytes(says: str, ending: str, files: dict[str, bytes]) -> None:
    """Add cases of an image of these bytes, all refused in the same words."""
    for name, data in files.items():
        CASES.append(pytest.param(partial(write, ending, data), says, id=name))


def as_image(name: str) -> list[str]:
    return [name, "text.npy"]


def as_text(name: str) -> list[str]:
    return ["image.npy", name]


def write(ending: str, data: bytes) -> list[str]:
    """A hostile image of these bytes."""
    Path(f"hostile{ending}").write_bytes(data)
    return as_image(f"hostile{ending}")


def npy(
    header: str | bytes, data: bytes = IMAGE.tobytes(), version: int = 1, length: int | None = None
) -> bytes:
    """A .npy file with this text for a header."""
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    size = 2 if version == 1 else 4
    text += b" " * (-(len(text) + 9 + size) % 64) + b"\n"
    claimed = len(text) if length is None else length
    return b"\x93NUMPY" + bytes((version, 0)) + claimed.to_bytes(size, "little") + text + data


def header(shape: object = (3, 8), descr: object = "<f4", fortran: object = False) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}"


def saved(array: np.ndarray, **options: Any) -> list[str]:
    """A hostile image that numpy wrote."""
    np.save("hostile.npy", array, **options)
    return as_image("hostile.npy")


def npz(compressed: bool = True) -> bytes:
    sink = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(sink, image=IMAGE)
    return sink.getvalue()


def safetensors(head: object, data: bytes = IMAGE.tobytes(), length: int | None = None) -> bytes:
    """A .safetensors file with this header, JSON or text."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(
    shape: object = (3, 8), start: int = 0, stop: int = 96, dtype: str = "F32"
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def torch_bytes(value: object, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


NPY = npy(header())
NPZ = npz()
SAFETENSORS = safetensors({"image": entry()})
PT = torch_bytes(torch.from_numpy(IMAGE))
