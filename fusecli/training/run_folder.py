"""The folder of a training run: what it is a run of, checkpoints, and who may work in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusecli.errors import FuseError, OutputError, UsageError
from fusecli.features.atomic import StagedFile
from fusecli.features.file import open_regular
from fusecli.features.folder_lock import folder_lock
from fusecli.features.leftovers import is_temporary, sweep
from fusecli.features.protected import ProtectedFiles
from fusecli.fusion.run_sums import MODELS, file_sum, models_of
from fusecli.fusion.weights_file import RUN_RECORD, RUN_WEIGHTS
from fusecli.training.checkpoint import Checkpoints
from fusecli.training.fitted import Fitted
from fusecli.training.run_models import CHECKPOINTS, refuse_odd, save_models

_VERSION = 1
_LARGEST_RECORD = 1 << 26  # bytes of run.json


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder.
        identity: everything that the results follow from: options, hashes of features and
            labels, versions. Plain data.
        results: files that a finished run has, the one that says that it is finished first.
    """

    def __init__(self, path: str, identity: Mapping[str, Any], results: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._results = tuple(results)
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self.identity = json.loads(self._identity)
        self._older: set[str] = set()  # names in the folder of files that may be replaced

    @contextmanager
    def alone(self, resume: bool = False) -> Iterator[bool]:
        """Make the folder if it does not exist, and keep other trainings of this machine out of it.

        A folder that was made here and stays empty is removed at the end, before its lock is
        given back, and never while others hold it: they may just be beginning in it.

        Args:
            resume: as for `begin`: no folder is made.

        Returns:
            Whether the folder is locked: Windows and some file systems have no such locks.

        Raises:
            OutputError: another training works in the folder, or it cannot be made.
        """
        made = not resume and not os.path.lexists(self.path) and self._make()
        if not self.path.is_dir():  # `begin` says what is wrong
            yield True
            return
        with folder_lock(str(self.path), "exclusive") as lock:
            if lock == "others hold it":
                raise OutputError(
                    f"{self.path}: another command is working with the run in this folder: "
                    "wait for it, or name another folder"
                )
            try:
                yield lock == "held"
            finally:
                if made:
                    with suppress(OSError):
                        self.path.rmdir()

    def check(self, inputs: ProtectedFiles) -> None:
        """Look at everything that a run may replace or delete, before it does.

        Raises:
            OutputError: it is an input, or a link or a pipe stands where a file or a folder of
                the run has its place: a folder that others write to could lead elsewhere.
        """
        for name in _names(str(self.path), self._results):
            path = str(self.path / name)
            try:
                status = os.lstat(path)
            except (OSError, ValueError):
                continue
            inputs.check(path)
            refuse_odd(path, status.st_mode)
            self._older.add(name)

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file of the run, whole or not at all.

        Args:
            name: of the file, in the folder, with "/".
            parts: of its content.

        Raises:
            OutputError: it cannot be written; a link stands in its place or in that of its
                folder; or somebody else has made a file of this name since `check`.
        """
        path = str(self.path / name)
        for place in (os.path.dirname(path), path) if "/" in name else (path,):
            with suppress(FileNotFoundError):
                refuse_odd(place, os.lstat(place).st_mode)  # hours after `check`
        with StagedFile(path, replace=name in self._older) as staged:
            staged.begin()
            for part in parts:
                staged.write(part)
            staged.publish()
        self._older.add(name)

    def begin(self, resume: bool = False, force: bool = False) -> bool:
        """Make the folder, or find the run that is to go on.

        Args:
            resume: there must be a run to go on with.
            force: a run of other options is deleted.

        Returns:
            Whether an unfinished or finished run of the same identity is there.

        Raises:
            UsageError: the folder holds a run of other options, or something else; or `resume`
                and there is no run.
            OutputError: it cannot be written.
        """
        there = self.path / RUN_RECORD
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"-o {self.path}: is a file; name a folder for the run")
        if there.exists():
            found = _read_json(there).get("identity")
            if not isinstance(found, dict):  # not even with --force: it may be of `fusecli batch`
                raise UsageError(f"{there}: is damaged, or of no training run: name another folder")
            if found == self.identity:
                return True
            if not force:
                raise UsageError(
                    f"{self.path}: holds a run that differs in {_differences(found, self.identity)}"
                    ": say --force to begin anew, or name another folder"
                )
            self._clear()
            self._older.add(RUN_RECORD)  # the record of the run that --force replaces
        elif resume:
            raise UsageError(f"--resume: {self.path} holds no run to go on with")
        elif self.path.exists() and not self._is_empty():
            raise UsageError(
                f"{self.path}: is not empty and holds no {RUN_RECORD}: name an empty or new folder"
            )
        self._make()
        record = {"version": _VERSION, "identity": self.identity}
        self.write(RUN_RECORD, [(json.dumps(record, indent=2, sort_keys=True) + "\n").encode()])
        return False

    def _is_empty(self) -> bool:
        """Whether nothing is there but what a training has left that was killed as it began."""
        sweep(str(self.path))
        return all(is_temporary(name) for name in os.listdir(self.path))

    def _make(self) -> bool:
        """Whether the folder was not there: others may make it at the same moment."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
            return True
        except OSError as error:
            if self.path.is_dir():
                return False
            raise OutputError(f"{self.path}: cannot be made: {error.strerror}") from None

    def checkpoints(self, part: str = "") -> Checkpoints:
        """Where the states of jobs are kept.

        Args:
            part: of the run, such as the number of an outer fold, whose jobs have the same
                names.
        """
        return Checkpoints(self.path / CHECKPOINTS, f"{self._identity} {part}")

    def sums(self, names: Sequence[str] = ()) -> dict[str, str]:
        """SHA-256 of the files of the models, and of others in the folder, by their paths in it.

        Raises:
            FuseError: one of them cannot be read.
        """
        files = [RUN_WEIGHTS, *names, *models_of(self.path)]
        return {name: file_sum(str(self.path / name)) for name in files}

    def finish(self) -> None:
        """Delete the checkpoints; called when every result is written."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def save_models(
        self,
        fitted: Sequence[Fitted],
        head: Mapping[str, Any],
        calibrations: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Write `weights.safetensors` and `models/`; see `run_models.save_models`."""
        save_models(self.path, self.write, fitted, head, calibrations)

    def _clear(self) -> None:
        """Delete another run. `run.json` stays until it is replaced: a folder without is no run,
        and would be refused if this is stopped in the middle."""
        for name in (*self._results, RUN_WEIGHTS):
            (self.path / name).unlink(missing_ok=True)
        for name in (MODELS, CHECKPOINTS):
            shutil.rmtree(self.path / name, ignore_errors=True)


@contextmanager
def reading_run(path: str) -> Iterator[None]:
    """While this lasts no training of this machine begins to work in the folder of a run.

    Raises:
        OutputError: one is working there.
    """
    if not os.path.isdir(path):  # the reader says what is wrong
        yield
        return
    with folder_lock(path, "shared") as lock:
        if lock == "others hold it":
            raise OutputError(f"{path}: a training is working in this folder: wait for it")
        yield


def files_of_run(path: str, results: Sequence[str] = ()) -> ProtectedFiles:
    """The files of a run that is read, which nothing may be written over.

    Args:
        path: of the run's folder.
        results: names of files in it besides weights, models and record.
    """
    return ProtectedFiles(lambda: [os.path.join(path, name) for name in _names(path, results)])


def _names(folder: str, results: Sequence[str]) -> list[str]:
    """Everything in a run's folder that is of the run, whether it is there or not.

    By its name in the folder, with "/": a folder has several paths, such as `run`, `./run/`.
    """
    found = [RUN_RECORD, RUN_WEIGHTS, *results]
    for name in (MODELS, CHECKPOINTS):
        inner = os.path.join(folder, name)
        found.append(name)
        if os.path.isdir(inner) and not os.path.islink(inner):
            found += [f"{name}/{each}" for each in os.listdir(inner)]
    return found


def hash_of(parts: Sequence[str]) -> str:
    """One hash of many, such as those of all features."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    data = None
    try:
        with open_regular(str(path)) as file:
            data = json.loads(file.read(_LARGEST_RECORD))
    except (FuseError, ValueError, RecursionError):
        pass  # what it is instead does not matter
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: is damaged, or of no training run: name another folder")
    return data


def _shown_part(whole: str, part: str, value: object) -> str:
    """The name of one part of an identity: an option as it is said on the command line."""
    if whole == "options" and not isinstance(value, dict):
        return f"--{part.replace('_', '-')}"
    return f"{whole}.{part}"


def _differences(found: Any, wanted: Mapping[str, Any]) -> str:
    """Which parts of two identities differ, by name."""
    if not isinstance(found, dict):
        return "everything"
    names = sorted({n for n in (*found, *wanted) if found.get(n) != wanted.get(n)}, key=str)
    detailed = []
    for name in names[:5]:
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = dict.fromkeys(k for k in (*old, *new) if old.get(k) != new.get(k))
            detailed += [_shown_part(name, k, new.get(k, old.get(k))) for k in inner][:5]
        else:
            detailed.append(name)
    return ", ".join(detailed)
