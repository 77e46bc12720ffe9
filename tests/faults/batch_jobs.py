"""The batches that several of these tests run, and their results."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file

from tests.batches import outputs

LAYOUTS: dict[str, tuple[str, ...]] = {
    "files": (),
    "packs": ("--pack", "--shard-size", "3k"),
}
# One worker: the order of calls is then the same in each run.
BATCH = ("batch", "images", "texts", "-o", "out", "--quiet", "--workers", "1", "--heads", "4")


def results(folder: Path) -> dict[str, bytes]:
    """Of each result its bytes: of packs each tensor, wherever it lies."""
    found: dict[str, bytes] = {}
    for name, data in outputs(folder).items():
        if name.endswith("index.json"):
            listed = json.loads(data)["weight_map"]
            for key, pack in listed.items():
                found[key] = load_file(folder / pack)[key].tobytes()
        elif not name.startswith("fused"):
            found[name] = data
    return found
