"""The files of a training run by name, and what stands in those that are not tables."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fusecli._version import __version__
from fusecli.errors import FuseError
from fusecli.features.atomic import StagedFile
from fusecli.fusion.run_sums import METRICS, metrics_of
from fusecli.training.examples import Examples
from fusecli.training.fitted import Fitted
from fusecli.training.options import TrainOptions
from fusecli.training.run_folder import hash_of
from fusecli.training.targets import Targets

REPORT, PREDICTIONS, SPLIT, LOG = (
    "report.md",
    "predictions.csv",
    "split.csv",
    "log.jsonl",
)
CURVES, COMPARISON = "curves.png", "comparison.png"
# The file that says that a run is complete comes first: it is deleted first and written last.
OUTPUTS = (METRICS, REPORT, PREDICTIONS, SPLIT, LOG, CURVES, COMPARISON)


def identity(options: TrainOptions, examples: Examples, targets: Targets) -> dict[str, Any]:
    """All that a run's results follow from: `run.json`."""
    import safetensors
    import torch

    said = asdict(options)
    for name in ("output", "resume", "force", "max_memory"):
        del said[name]
    said["pairs"] = {
        name: value
        for name, value in said["pairs"].items()
        if value and name not in ("output", "ending", "refused", "extra_columns")
    }
    labels = hashlib.sha256(targets.values.tobytes())
    labels.update(json.dumps([targets.names, targets.group, targets.split]).encode())
    labels.update(targets.weights().tobytes())
    return {
        "options": said,
        "data": {
            "pairs": examples.n,
            "ids": hash_of(examples.ids),
            "images": hash_of(examples.image_key),
            "texts": hash_of(examples.text_key),
            "labels": labels.hexdigest(),
        },
        "versions": {
            "fusecli": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "safetensors": safetensors.__version__,
            "python": platform.python_version(),
        },
    }


def log_jsonl(fitted: Sequence[Fitted]) -> bytes:
    """`log.jsonl`: a line an epoch of every model of the table; no times, so that bytes repeat."""
    lines = []
    for model in fitted:
        for job, records in model.info.history.items():
            for record in records:
                line = {"model": model.name, "job": job, **asdict(record)}
                lines.append(json.dumps(line, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def recipes_of(fitted: Sequence[Fitted]) -> dict[str, dict[str, Any]]:
    """How each line of the table was trained, for `metrics.json`."""
    return {m.name: asdict(m.info.recipe) for m in fitted if m.info.recipe is not None}


def read_metrics(path: str) -> dict[str, Any] | None:
    """The `metrics.json` of a complete run; None where it is not there, or damaged."""
    try:
        found: dict[str, Any] = metrics_of(path)
        numbers = found["measured_pairs"], found["groups"]
        texts = [
            found["part"],
            *found["verdict"],
            *(cell for row in found["table"] for cell in row),
        ]
        lists = [found["verdict"], found["table"], *found["table"]]
        widths = {len(row) for row in found["table"]}
    except (FuseError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if not all(isinstance(each, list) for each in lists) or len(widths) != 1:
        return None
    sound = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
    return found if sound and all(isinstance(text, str) for text in texts) else None


def write_bytes(path: str, content: bytes, replace: bool) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file.
        content: of it.
        replace: a file of that name is replaced, also one that appears meanwhile.

    Raises:
        OutputError: it cannot be written.
    """
    with StagedFile(path, replace) as staged:
        staged.begin().write(content)
        staged.publish()
