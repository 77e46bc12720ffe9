"""The output folder: what lies where in it, who may work in it, and for which run it is.

    run.json                 what the run computes; written first
    journal.jsonl            a line a pair; journal-1-of-8.jsonl for a shard
    .fusecli/lock            held by whoever works here: shared by shards
    .fusecli/staging*/       files on their way; gone when a run ends
    .fusecli/finished-*      a shard that has nothing left to do

A lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Iterable
from typing import Any

from fusecli.batch.options import Shard
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.store.cleanup import remove_results
from fusecli.batch.store.journal import Journal
from fusecli.errors import OutputError, UsageError
from fusecli.features.atomic import StagedFile, not_written
from fusecli.pairs.open import Pair

HIDDEN = ".fusecli"
_RECORD = "run.json"
_PATIENCE = 10.0  # seconds that a shard waits for another to write the record


class OutputFolder:
    """An output folder with this process's right to work in it.

    Args:
        path: the folder.
        shard: this process's part of the run, or None for all of it.
    """

    def __init__(self, path: str, shard: Shard | None) -> None:
        self.path, self.shard = path, shard
        self.suffix = "" if shard is None else shard.suffix
        self._made = False
        self._locks: list[int] = []
        self.journal: Journal | None = None

    def inside(self, *parts: str) -> str:
        """A path in the folder."""
        return os.path.join(self.path, *parts)

    @property
    def staging(self) -> str:
        """Where this process's files are until they are whole."""
        return self.inside(HIDDEN, f"staging{self.suffix}")

    @property
    def journals(self) -> list[str]:
        """Paths of all journals, the one that was written last at the end."""
        found = glob.glob(os.path.join(glob.escape(self.path), "journal*.jsonl"))
        return sorted(found, key=lambda path: (os.stat(path).st_mtime_ns, len(path), path))

    @property
    def journal_path(self) -> str:
        """Path of this process's journal."""
        return self.inside(f"journal{self.suffix}.jsonl")

    def enter(self) -> None:
        """Make the folder where there is none, and take the right to work in it.

        Raises:
            OutputError: somebody else works in it, or it cannot be written.
        """
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise OutputError(f"{self.path}: is a file, expected a folder: say another -o")
        try:
            self._made = not os.path.isdir(self.path)
            os.makedirs(self.inside(HIDDEN), exist_ok=True)
            lock = os.open(self.inside(HIDDEN, "lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self.failed(error) from None
        self._locks.append(lock)
        if _locked(lock, fcntl.LOCK_EX):
            self._clear()
            return
        if self.shard is None:
            raise OutputError(f"{self.path}: another run is working in this folder: wait for it")
        until = time.monotonic() + _PATIENCE
        while not (_locked(lock, fcntl.LOCK_SH) and os.path.exists(self.inside(_RECORD))):
            if time.monotonic() > until:
                raise OutputError(
                    f"{self.path}: a run of all shards is working in this folder: wait for it"
                )
            time.sleep(0.05)

    def _clear(self) -> None:
        """Remove what a killed process was writing beside the results; nobody else works here."""
        for path in glob.glob(os.path.join(glob.escape(self.path), ".fusecli-*.part")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def record(self) -> dict[str, Any] | None:
        """What an earlier run, or another shard, wrote down; None for a new folder.

        Raises:
            OutputError: the record is damaged.
        """
        path = self.inside(_RECORD)
        try:
            with open(path, "rb") as file:
                data = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path}: is damaged ({error}): say another -o, or --force to begin anew"
            ) from None
        if not isinstance(data, dict):
            raise OutputError(f"{path}: is no record of a run: say another -o")
        return data

    def holds_no_run(self) -> OutputError:
        """The error for a folder in which nothing was begun."""
        return OutputError(f"{self.path}: holds no run of `fusecli batch` (no {_RECORD} in it)")

    def refuse_foreign(self) -> None:
        """Raises:
        OutputError: there is something in the folder, and no run has put it there.
        """
        if any(name != HIDDEN for name in os.listdir(self.path)):
            raise OutputError(
                f"{self.path}: is not empty and holds no run of `fusecli batch`: say another -o, "
                "or --force to write into it"
            )

    def begin_anew(self, pairs: Iterable[Pair]) -> None:
        """Remove an earlier run: its results, its journals, what it was about to write.

        Args:
            pairs: of the run that begins, whose inputs stay whatever journals say.
        """
        from fusecli.batch.store.packs import remove_packs

        try:
            remove_results(self.path, self.journals, pairs)
            remove_packs(self.path)
            for path in self.journals:
                os.unlink(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.inside(_RECORD))
            for path in glob.glob(os.path.join(glob.escape(self.inside(HIDDEN)), "*")):
                if os.path.isdir(path):
                    shutil.rmtree(path)
                elif os.path.basename(path) != "lock":
                    os.unlink(path)
        except OSError as error:
            raise self.failed(error) from None

    def begin(self, described: dict[str, Any], recorded: dict[str, Any] | None) -> None:
        """Write the record or hold this run against it, open the journal, clear the staging.

        Args:
            described: what this run computes.
            recorded: what `record` gave.

        Raises:
            UsageError: the folder holds a run with other options.
            OutputError: this shard runs already, or the folder cannot be written.
        """
        if recorded is None:
            with StagedFile(self.inside(_RECORD)) as staged:
                staged.begin().write((json.dumps(described, indent=2) + "\n").encode())
                staged.publish()
        elif differences := _differences(recorded, described):
            raise UsageError(
                f"{self.path}: holds a run with other options ({'; '.join(differences)}): "
                "say another -o, or --force to begin it anew"
            )
        if self.shard is not None:
            fcntl.flock(self._locks[0], fcntl.LOCK_SH)
        self.journal = Journal(self.journal_path)
        try:
            os.makedirs(self.staging, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._finished(self.suffix))
        except OSError as error:
            raise self.failed(error) from None

    def finish(self) -> bool:
        """Leave in good order.

        Returns:
            Whether nobody else works here any more, every shard has finished, and this process
            now holds the folder for itself.
        """
        if self.shard is None:
            return True
        with open(self._finished(self.suffix), "wb"):
            pass
        lock = self._locks[0]
        fcntl.flock(lock, fcntl.LOCK_UN)
        if not _locked(lock, fcntl.LOCK_EX):
            return False
        parts = (f"-{index}-of-{self.shard.of}" for index in range(1, self.shard.of + 1))
        return all(os.path.exists(self._finished(part)) for part in parts)

    def _finished(self, suffix: str) -> str:
        return self.inside(HIDDEN, f"finished{suffix}")

    def leave(self) -> None:
        """Remove what is temporary and give the locks back; a folder that holds nothing goes."""
        if self.journal is not None:
            self.journal.close()
            with contextlib.suppress(OSError):
                os.rmdir(self.staging)  # not where a pack waits to be continued
        elif self._locks and not os.path.exists(self.inside(_RECORD)):
            with contextlib.suppress(OSError):
                os.unlink(self.inside(HIDDEN, "lock"))
                os.rmdir(self.inside(HIDDEN))
                if self._made:
                    os.rmdir(self.path)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()

    def failed(self, error: OSError) -> OutputError:
        """What the system said about the folder, as the user's error."""
        return not_written(error.filename2 or error.filename or self.path, error)


def described(spec: FusionSpec, layout: dict[str, Any]) -> dict[str, Any]:
    """The record of a run: what it computes and how results are laid out."""
    return {**spec.to_dict(), "layout": layout}


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _differences(recorded: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """What two records do not have in common, each as `name: was A, is B`."""
    before, now = dict(_flat(recorded)), dict(_flat(described))
    return [
        f"{name}: {_shown(before.get(name))} there, {_shown(now.get(name))} now"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:12]}..." if isinstance(value, str) and len(text) > 40 else text
