"""The formats fusecli knows, by the endings of file names.

A format is added as one module beside this one and one line in `FORMATS`. The modules import
nothing heavy before a file of theirs is opened.
"""

from __future__ import annotations

import os
from typing import cast

from fusecli.features.formats.base import Format, WritableFormat
from fusecli.features.formats.npy import NpyFormat
from fusecli.features.formats.npz import NpzFormat
from fusecli.features.formats.safetensors import SafetensorsFormat
from fusecli.features.formats.torch_checkpoint import TorchCheckpointFormat

FORMATS: tuple[Format, ...] = (
    NpyFormat(),
    NpzFormat(),
    SafetensorsFormat(),
    TorchCheckpointFormat(),
)

_BY_ENDING = {ending: each for each in FORMATS for ending in each.endings}
READABLE_ENDINGS = tuple(_BY_ENDING)
WRITABLE_ENDINGS = tuple(ending for ending in _BY_ENDING if hasattr(_BY_ENDING[ending], "sink"))


def format_of(name: str) -> Format | None:
    """The format that a file's name says by its ending, or None."""
    return _BY_ENDING.get(os.path.splitext(name)[1].lower())


def writable_format_of(name: str) -> WritableFormat | None:
    """The same for a file that is to be written; None if its format is only read."""
    found = format_of(name)
    return cast(WritableFormat, found) if hasattr(found, "sink") else None
