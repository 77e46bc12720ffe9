"""What options can be, and which exclude each other, for a single job and for a batch alike."""

from __future__ import annotations

from collections.abc import Sequence

from fusecli.errors import UsageError
from fusecli.features.writer import OUT_DTYPES
from fusecli.fusion.backend.device import check_device_name
from fusecli.fusion.config import DIRECTIONS
from fusecli.fusion.methods.pooled import POOLS
from fusecli.fusion.results import BOTH

DTYPES = ("float32", "bfloat16", "float16")
ENGINES = ("auto", "numpy", "torch")


def check_choice(option: str, value: str | None, allowed: Sequence[str]) -> None:
    """Raises:
    UsageError: the value was said and is not one of those allowed.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value}: expected {', '.join(allowed)}")


def check_computing(device: str, dtype: str, engine: str) -> None:
    """Raises:
    UsageError: no such device, type or engine, or the engine does not run so.
    """
    check_choice("--dtype", dtype, DTYPES)
    check_choice("--engine", engine, ENGINES)
    check_device_name(device)
    if engine == "numpy" and (dtype != "float32" or device not in ("auto", "cpu")):
        raise UsageError("--engine numpy computes in float32 on the CPU only")


def check_result(out_dtype: str, direction: str, pool: str | None) -> None:
    """Raises:
    UsageError: no such type, direction or way to pool.
    """
    check_choice("--out-dtype", out_dtype, OUT_DTYPES)
    check_choice("--direction", direction, (*DIRECTIONS, BOTH))
    check_choice("--pool", pool, POOLS)


def check_origin(weights: str | None, seed: int | None) -> None:
    """Raises:
    UsageError: both a weights file and a seed were said.
    """
    if weights is not None and seed is not None:
        raise UsageError("--weights and --seed exclude each other: a seed makes initial weights")
