"""Sums of a run's files in its metrics.json: files of two runs in one folder are no run.

A copy that was broken off, or a second run copied over the first, leaves such a folder. Its
models would be measured as one, and its list of learnt pairs would be another run's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from fusecli.errors import FeatureFileError, FuseError
from fusecli.features.file import open_regular

METRICS = "metrics.json"
MODELS = "models"  # the folder of the other models
SUMS_KEY = "files"
LARGEST_METRICS = 1 << 26  # bytes

Sums = Mapping[str, str]


def model_names(folder: str | os.PathLike[str]) -> list[str]:
    """The files of the models in the folder `models/` of a run.

    Raises:
        FeatureFileError: it cannot be listed.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    except OSError as error:
        raise FeatureFileError(f"{folder}: cannot be listed: {error.strerror}") from None
    return [name for name in names if not name.startswith(".")]


def models_of(path: str | os.PathLike[str]) -> list[str]:
    """The same by their paths in the run's folder, with "/" on every system: a run is copied.

    Raises:
        FeatureFileError: the folder of the models cannot be listed.
    """
    return [f"{MODELS}/{name}" for name in model_names(os.path.join(path, MODELS))]


def file_sum(path: str) -> str:
    """SHA-256 of a file.

    Raises:
        FeatureFileError: it cannot be read.
    """
    import hashlib  # loads OpenSSL, which most jobs do not need

    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metrics_of(path: str) -> Any:
    """What the `metrics.json` at a path holds, of whatever form.

    Raises:
        FeatureFileError: it cannot be read.
        ValueError, RecursionError: it is no JSON.
    """
    with open_regular(path) as file:
        return json.loads(file.read(LARGEST_METRICS))


def sums_of_run(path: str) -> Sums | None:
    """What a finished run says of its files, by their paths in its folder.

    None where it says nothing: of some runs only the models were copied, and runs of earlier
    versions have no sums.

    Raises:
        FeatureFileError: what it says is damaged.
    """
    name = os.path.join(path, METRICS)
    if not os.path.lexists(name):
        return None
    try:
        sums = metrics_of(name).get(SUMS_KEY)
    except (ValueError, AttributeError, RecursionError):
        raise _damaged(name) from None
    if sums is None:
        return None
    if not isinstance(sums, dict) or not all(isinstance(text, str) for text in sums.values()):
        raise _damaged(name)
    return sums


def check_sum(sums: Sums | None, folder: str, name: str, found: str) -> None:
    """Refuse a file that is not the one that the run has written.

    Args:
        sums: of the run; None: nothing is known.
        folder: of the run.
        name: of the file, in the folder.
        found: SHA-256 of what was read.

    Raises:
        FeatureFileError: it is another.
    """
    if sums is not None and sums.get(name) != found:
        raise FeatureFileError(
            f"{os.path.join(folder, name)}: is not the file that this run has written, by "
            f"{METRICS}: copy the run's folder again, or run the same fusecli train command again"
        )


def are_whole(path: str) -> bool:
    """Whether the files of a run are those that it has written, as far as it says.

    A model more is none of them: the run would be refused with it, and nobody would mend it.
    """
    try:
        sums = sums_of_run(path)
        if sums is None:
            return True
        if set(models_of(path)) != {name for name in sums if name.startswith(f"{MODELS}/")}:
            return False
        return all(file_sum(os.path.join(path, n)) == text for n, text in sums.items())
    except (FuseError, OSError, ValueError):
        return False


def _damaged(name: str) -> FeatureFileError:
    return FeatureFileError(
        f"{name}: is damaged: copy the run's folder again, or run the same fusecli train command "
        "again"
    )
