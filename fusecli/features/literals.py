"""Closed sets of values. Imports nothing, so that `--help` may use it."""

from __future__ import annotations

from typing import Literal, get_args

Side = Literal["text", "image"]
MaskStyle = Literal["keep", "padding", "additive", "lengths"]
OutDtype = Literal["float32", "float16", "bfloat16"]

OUT_DTYPES: tuple[OutDtype, ...] = get_args(OutDtype)
