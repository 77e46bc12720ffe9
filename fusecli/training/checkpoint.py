"""The state of jobs under way, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FuseError, OutputError
from fusecli.features.atomic import StagedFile
from fusecli.features.file import open_features

Floats = NDArray[np.float32]

_VERSION = 3  # 1 had no sum, 2 did not say what the job was
_JOB_KEY = "fusecli_job"  # in the file's metadata


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch.

    Attributes:
        epoch: from 1.
        train_loss: mean over the epoch's batches, with dropout and label smoothing.
        score: on the validation rows, higher is better; None where they were not looked at.
        score_name: what the score is, such as "AUC".
    """

    epoch: int
    train_loss: float
    score: float | None
    score_name: str


@dataclass
class JobState:
    """Everything that a job needs to go on after an epoch.

    Attributes:
        epoch: epochs that are done.
        steps: steps that are done.
        parameters, first, second: float32 vectors of the optimizer.
        best: parameters of the best epoch so far.
        best_epoch, best_score: which, and its validation score.
        history: of the epochs.
        held_out: logits of the held-out rows, by epoch.
        done: the job is finished.
    """

    epoch: int = 0
    steps: int = 0
    parameters: Floats | None = None
    first: Floats | None = None
    second: Floats | None = None
    best: Floats | None = None
    best_epoch: int = 0
    best_score: float = float("-inf")
    history: list[EpochRecord] = field(default_factory=list)
    held_out: dict[int, Floats] = field(default_factory=dict)
    done: bool = False

    @classmethod
    def new(cls) -> JobState:
        """Before the first epoch."""
        return cls()


class Checkpoints:
    """Where the states of a run's jobs are kept.

    Args:
        folder: of the checkpoints; made when the first is written. None: nothing is kept.
        run: what the run is (options, features, labels, versions), as text. The state of a job
            of another run is not used.
    """

    def __init__(self, folder: Path | None, run: str = "") -> None:
        self._folder = folder
        self._run = _hash(run)

    def load(self, key: str, job: str = "") -> JobState | None:
        """The state of a job, or None if there is none that is whole and of this run.

        Args:
            key: of the job, unique in the run.
            job: what its result follows from, as text: model, recipe, rows. A state that was
                made of other things, such as by another version, is not used.
        """
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            with open_features(str(path)) as file:
                data = json.loads(file.metadata[_JOB_KEY])
                tensors = {name: stored.read() for name, stored in file.tensors.items()}
            known = tuple(data.pop(name) for name in ("run", "key", "job", "version"))
            wanted = self._run, key, _hash(job), _VERSION
            if known != wanted or data.pop("sum") != _sum(data, tensors):
                return None
            data["history"] = [EpochRecord(**record) for record in data["history"]]
            held_out = {int(n[9:]): a for n, a in tensors.items() if n.startswith("held_out.")}
            plain: dict[str, Any] = {
                n: a for n, a in tensors.items() if not n.startswith("held_out.")
            }
            return JobState(**data, **plain, held_out=held_out)
        except (FuseError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # damaged: the job is trained anew, with the same result

    def save(self, key: str, state: JobState, job: str = "") -> None:
        """Write a job's state, whole or not at all.

        Args:
            key, job: as for `load`.
            state: of the job.

        Raises:
            OutputError: it cannot be written, or the folder is a link by now.
        """
        from safetensors.numpy import save

        path = self._path(key)
        if path is None:
            return
        make_folder(path.parent)
        names = ("best",) if state.done else ("parameters", "first", "second", "best")
        tensors = {n: a for n in names if (a := getattr(state, n)) is not None}
        tensors |= {f"held_out.{epoch}": a for epoch, a in state.held_out.items()}
        data: dict[str, Any] = {"history": [asdict(record) for record in state.history]}
        for name in ("epoch", "steps", "best_epoch", "best_score", "done"):
            data[name] = getattr(state, name)
        whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        data |= {"sum": _sum(data, whole), "version": _VERSION}
        data |= {"run": self._run, "key": key, "job": _hash(job)}
        with StagedFile(str(path)) as staged:
            staged.begin().write(save(whole, {_JOB_KEY: json.dumps(data)}))
            staged.publish()

    def _path(self, key: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{_hash(key)[:24]}.safetensors"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder inside that of a run, if it does not exist.

    Raises:
        OutputError: it cannot be made, or a link stands in its place, also one that leads nowhere.
    """
    if folder.is_symlink():
        raise OutputError(
            f"{folder}: is a link, which is not followed in a run's folder; expected a "
            "folder: remove it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from None


def _sum(data: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> int:
    """A checksum of a state: one that was damaged would give other results without a word."""
    found = zlib.crc32(json.dumps(data, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {array.shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return found
