"""The formats fusecli knows, by the endings of file names.

A format is added as one module beside this one and one line in `FORMATS`. The module is imported
when the first file of its format is opened or written.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import NamedTuple, cast

from fusecli.features.formats.base import Format, WritableFormat


class Entry(NamedTuple):
    """One format.

    Attributes:
        module: the file beside this one that has a `FORMAT`, as `formats/base.py` describes it.
        endings: of its files' names, in lower case, with the dot.
        writable: its `FORMAT` is a `WritableFormat`.
    """

    module: str
    endings: tuple[str, ...]
    writable: bool


TORCH_ENDINGS = (".pt", ".pth", ".ckpt")

FORMATS = (
    Entry("npy", (".npy",), writable=True),
    Entry("npz", (".npz",), writable=True),
    Entry("safetensors", (".safetensors",), writable=True),
    Entry("torch_checkpoint", TORCH_ENDINGS, writable=False),
)

_BY_ENDING = {ending: entry for entry in FORMATS for ending in entry.endings}
READABLE_ENDINGS = tuple(_BY_ENDING)
WRITABLE_ENDINGS = tuple(ending for ending, entry in _BY_ENDING.items() if entry.writable)


def format_of(name: str) -> Format | None:
    """The format that a file's name says by its ending, or None."""
    entry = _BY_ENDING.get(os.path.splitext(name)[1].lower())
    return None if entry is None else load_format(entry.module)


def writable_format_of(name: str) -> WritableFormat | None:
    """The same for a file that is to be written; None if its format is only read."""
    entry = _BY_ENDING.get(os.path.splitext(name)[1].lower())
    return cast(WritableFormat, load_format(entry.module)) if entry and entry.writable else None


@cache
def load_format(module: str) -> Format:
    """The format of a module in this folder."""
    found: Format = import_module(f"fusecli.features.formats.{module}").FORMAT
    return found
