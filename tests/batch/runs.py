"""Small runs of a batch, for its tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fusecli.batch import BatchOptions
from fusecli.pairs.open import PairOptions

COUNT = 30


def options(output: str = "out", **changed: object) -> BatchOptions:
    return BatchOptions(PairOptions("images", "texts"), output, **changed)


def single(cli, name: str, *more: str) -> np.ndarray:
    """What `fusecli fuse` makes of one pair."""
    done = cli("fuse", f"images/{name}.npy", f"texts/{name}.npy", "-f", "-o", "one.npy", *more)
    assert done.code == 0, done.err
    return np.load("one.npy")


def names() -> list[str]:
    return [f"{index % 3}/{index:04d}" for index in range(COUNT)]


def packed(folder: str) -> dict[str, np.ndarray]:
    index = json.loads(Path(folder, "fused.safetensors.index.json").read_text())
    return {id: load_file(Path(folder, pack))[id] for id, pack in index["weight_map"].items()}
