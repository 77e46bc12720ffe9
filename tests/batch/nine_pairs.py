"""A run of nine pairs."""

from __future__ import annotations

from fusecli.batch import BatchOptions
from fusecli.pairs.open import PairOptions

COUNT = 9
RUN = ["batch", "images", "texts", "-o", "out"]
INDEX = "out/fused.safetensors.index.json"


def names() -> list[str]:
    return [f"{index % 3}/{index:04d}" for index in range(COUNT)]


def options(output: str = "out", **changed: object) -> BatchOptions:
    return BatchOptions(PairOptions("images", "texts"), output, **changed)
