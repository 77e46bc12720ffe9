"""The closed sets of values that options take. Imports nothing, so that `--help` may use it."""

from __future__ import annotations

from typing import Literal, get_args

from fusecli.features.literals import OUT_DTYPES as OUT_DTYPES
from fusecli.features.literals import OutDtype as OutDtype
from fusecli.features.literals import Side as Side

MethodName = Literal["attention", "concat", "sum", "transformer", "bilinear"]
Direction = Literal["text", "image", "both"]
Dtype = Literal["float32", "bfloat16", "float16"]
Engine = Literal["auto", "numpy", "torch"]
Pool = Literal["mean", "max", "first"]
ScoreOrder = Literal["projected", "query", "key", "none"]
ValueOrder = Literal["projected", "context", "output", "none"]

METHODS: tuple[MethodName, ...] = get_args(MethodName)
SIDES: tuple[Side, ...] = get_args(Side)
BOTH: Direction = "both"
POOLS: tuple[Pool, ...] = get_args(Pool)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ENGINES: tuple[Engine, ...] = get_args(Engine)
