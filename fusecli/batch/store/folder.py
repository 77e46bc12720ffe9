"""The output folder: who may work in it, for which run it is, and how a run begins and ends."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time

from fusecli.batch.store import layout
from fusecli.batch.store.cleanup import delete_results, delete_staged
from fusecli.batch.store.journal import Journal, is_journal
from fusecli.batch.store.locks import try_lock, unlock
from fusecli.batch.store.run_record import (
    LARGEST_RECORD,
    RECORD,
    RunRecord,
    decode_record,
    spec_of,
)
from fusecli.batch.store.safe_folder import ResultFolders, SafeFolder, open_root
from fusecli.batch.tuning import Tuning
from fusecli.errors import OutputError, UsageError
from fusecli.features.atomic import StagedFile, not_written
from fusecli.features.leftovers import is_temporary
from fusecli.features.protected import ProtectedFiles


class OutputFolder:
    """An output folder with this process's right to work in it.

    Args:
        path: the folder.
        shard: this process's part of the run, or None for all of it.
        protected: files that stay as they are.
        tuning: how long to wait for others.

    Attributes:
        root, hidden, staging: the open folders, after `enter` and `begin`.
        results: the folders of results.
        journal: this process's journal, after `begin`.
    """

    def __init__(
        self,
        path: str,
        shard: layout.Shard | None,
        protected: ProtectedFiles,
        tuning: Tuning = Tuning(),  # noqa: B008 - it is frozen
    ) -> None:
        self.path, self.shard, self.protected, self._tuning = path, shard, protected, tuning
        self.suffix = "" if shard is None else shard.suffix
        self.root: SafeFolder
        self.hidden: SafeFolder
        self.staging: SafeFolder
        self.results: ResultFolders
        self.journal: Journal | None = None
        self._stack = contextlib.ExitStack()
        self._lock = -1
        self._spec: int | None = None
        self._alone = self._was_ours = False

    def inside(self, *parts: str) -> str:
        """A path in the folder, for messages."""
        return os.path.join(self.path, *parts)

    def look(self) -> RunRecord | None:
        """The record of an earlier run; creates nothing and waits for no lock.

        Raises:
            OutputError: the record is damaged, or the path is no folder.
        """
        self.refuse_file()
        try:
            root = open_root(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.failed(error, self.path) from None
        try:
            return _read_record(root)
        finally:
            root.close()

    def refuse_file(self) -> None:
        """Raises:
        OutputError: the path is no folder.
        """
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise OutputError(f"{self.path}: is a file, expected a folder: say another -o")

    def refuse_training(self) -> None:
        """Raises:
        OutputError: the path is no folder, or the folder of a training run.
        """
        self.refuse_file()
        if not os.path.isdir(self.path):
            return
        try:
            record = json.loads(_content(self.path))
        except (OutputError, OSError, ValueError, RecursionError):
            return  # what it is instead is said later
        if isinstance(record, dict) and "identity" in record and "module" not in record:
            raise OutputError(
                f"{self.inside(RECORD)}: is of a run of fusecli train: say another -o"
            )

    def refuse_foreign(self) -> None:
        """Raises:
        OutputError: the folder holds files that no run has written.
        """
        if os.path.isdir(self.path) and any(
            # A run that was killed while it wrote its record has left a temporary file.
            name != layout.HIDDEN and not is_temporary(name)
            for name in os.listdir(self.path)
        ):
            raise OutputError(
                f"{self.path}: is not empty and holds no run of `fusecli batch`: say another -o, "
                "or --force to write into it"
            )

    def holds_no_run(self) -> OutputError:
        """The error for a folder that holds no run."""
        return OutputError(f"{self.path}: holds no run of `fusecli batch` (no {RECORD} in it)")

    def enter(self) -> None:
        """Create the folder if it does not exist, and lock it for this process.

        Raises:
            OutputError: somebody else works in it, or it cannot be written.
        """
        where = self.inside(layout.HIDDEN)
        try:
            os.makedirs(self.path, exist_ok=True)
            self.root = open_root(self.path)
            self._stack.callback(self.root.close)
            self._was_ours = self.root.status(layout.HIDDEN) is not None
            self.hidden = self.root.folder(layout.HIDDEN, make=True)
            self._stack.callback(self.hidden.close)
            self._lock = self.hidden.open(layout.LOCK, os.O_RDWR | os.O_CREAT)
            self._stack.callback(os.close, self._lock)
        except OSError as error:
            raise self.failed(error, where) from None
        self.results = ResultFolders(self.root)
        self._stack.callback(self.results.close)
        where = self.inside(layout.HIDDEN, layout.LOCK)
        if try_lock(self._lock, "exclusive", where):
            self._alone = True
            return
        if self.shard is None:
            raise OutputError(f"{self.path}: another run is working in this folder: wait for it")
        until = time.monotonic() + self._tuning.lock_seconds
        while not (try_lock(self._lock, "shared", where) and self.root.status(RECORD)):
            if time.monotonic() > until:
                raise OutputError(
                    f"{self.path}: a run of all shards is working in this folder: wait for it"
                )
            time.sleep(0.05)

    def record(self) -> RunRecord | None:
        """The record that an earlier run or another shard wrote; None for a new folder.

        Raises:
            OutputError: the record is damaged.
        """
        return _read_record(self.root)

    @property
    def spec(self) -> int:
        """Tells what the run computes, by `run.json` as it is; 0 where there is none.

        Raises:
            OutputError: the record cannot be read.
        """
        if self._spec is None:
            self._spec = spec_of(_record_bytes(self.root) or b"{}")
        return self._spec

    @property
    def journals(self) -> list[str]:
        """Names of all journals, the one that was written last at the end.

        Raises:
            OutputError: one of them is no regular file.
        """
        try:
            return self._journals()
        except OSError as error:
            why = error.strerror or error
            raise OutputError(f"{self.path}: cannot be listed: {why}") from None

    def _journals(self) -> list[str]:
        found = []
        for name in self.root.names():
            status = self.root.status(name) if layout.is_journal_name(name) else None
            if status is None:
                continue
            if not stat.S_ISREG(status.st_mode):
                raise OutputError(f"{self.inside(name)}: is no regular file: remove it")
            ours = self.journal is not None and name == self.journal_name  # `begin` has asked
            if ours or not self.protected.holds(status):
                found.append((status.st_mtime_ns, len(name), name))
        return [name for _, _, name in sorted(found)]

    @property
    def own_journals(self) -> list[str]:
        """Those of them that hold lines of a journal; others may have files of that name."""
        return [name for name in self.journals if is_journal(self.root, name)]

    @property
    def journal_name(self) -> str:
        """Of this process's journal."""
        return layout.journal_name(self.suffix)

    def begin_anew(self) -> None:
        """Delete an earlier run: its results, its journals and its temporary files.

        Raises:
            OutputError: the system does not allow it, or a file that the run has to write is
                somebody else's.
        """
        journals = self.own_journals
        try:
            self._refuse_others_files(journals)
            delete_results(self.root, self.results, journals, self.protected)
            for name in journals:
                self.root.unlink(name)
            for name in (layout.INDEX, RECORD):
                self.root.unlink(name)
            for name in self.hidden.names():
                if layout.is_finished_name(name):
                    self.hidden.unlink(name)
                elif layout.is_staging_name(name):
                    delete_staged(self.hidden, name)
        except OSError as error:
            raise self.failed(error, self.path) from None

    def _refuse_others_files(self, journals: list[str]) -> None:
        """Raises:
        OutputError: a file that is protected, or that no run has written, has a name that this
            run needs.
        """
        for name in (RECORD, layout.INDEX, self.journal_name):
            status = self.root.status(name)
            if status is None:
                continue
            self._refuse_protected(name, status)
            if name == self.journal_name and name in journals:
                continue
            if name == self.journal_name or not (self._was_ours and stat.S_ISREG(status.st_mode)):
                raise OutputError(
                    f"{self.inside(name)}: was written by no run of `fusecli batch`, and this one "
                    "would replace it: say another -o, or move it"
                )

    def _refuse_protected(self, name: str, status: os.stat_result | None) -> None:
        if self.protected.holds(status):
            raise OutputError(
                f"{self.inside(name)}: is an input of this run, and inputs are never changed: "
                "say another -o"
            )

    def begin(self, record: RunRecord, recorded: RunRecord | None) -> None:
        """Write the record, or compare this run with it; open the journal and the staging folder.

        Args:
            record: what this run computes.
            recorded: what `record` gave.

        Raises:
            UsageError: the folder holds a run with other options.
            OutputError: this shard runs already, or the folder cannot be written.
        """
        if recorded is not None and (differences := recorded.differences(record)):
            raise UsageError(
                f"{self.path}: holds a run with other options ({'; '.join(differences)}): "
                "say another -o, or --force to begin it anew"
            )
        where = self.inside(layout.HIDDEN)
        try:
            for name in (RECORD, layout.INDEX, self.journal_name):
                self._refuse_protected(name, self.root.status(name))
            if recorded is None:
                self._write_record(record)
            if self._alone:
                self._delete_left_staging()
            if self.shard is not None:
                try_lock(self._lock, "shared", where)
                self._alone = False
            where = self.inside(self.journal_name)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self.journal = Journal(
                self.root, self.journal_name, self.root.open(self.journal_name, flags)
            )
            self._stack.callback(self.journal.close)
            self.journal.spec = self.spec
            where = self.inside(layout.HIDDEN)
            self.staging = self.hidden.folder(layout.staging_name(self.suffix), make=True)
            self._stack.callback(self._close_staging)
            self.hidden.unlink(layout.finished_name(self.suffix))
        except OSError as error:
            raise self.failed(error, where) from None

    def _write_record(self, record: RunRecord) -> None:
        import json

        status = self.root.status(RECORD)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise OutputError(f"{self.inside(RECORD)}: is no regular file: remove it")
        with StagedFile(self.inside(RECORD)) as staged:
            staged.begin().write((json.dumps(record.to_dict(), indent=2) + "\n").encode())
            staged.publish()

    def _delete_left_staging(self) -> None:
        """Delete temporary files of killed processes of other shards; no other process works
        here."""
        for name in self.hidden.names():
            same_parts = self.shard is not None and name.endswith(f"-of-{self.shard.of}")
            if (
                layout.is_staging_name(name)
                and name != layout.staging_name(self.suffix)
                and not same_parts
            ):
                delete_staged(self.hidden, name)
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=self.hidden.descriptor)

    def finish(self) -> bool:
        """Finish the run: write out everything that is still open.

        Returns:
            Whether nobody else works here any more, every shard has finished, and this process
            now holds the folder for itself.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.shard is None:
            return True
        name = layout.finished_name(self.suffix)
        try:
            os.close(self.hidden.open(name, os.O_WRONLY | os.O_CREAT))
            self.hidden.sync()
        except OSError as error:
            raise self.failed(error, self.inside(layout.HIDDEN, name)) from None
        unlock(self._lock)
        if not try_lock(self._lock, "exclusive", self.inside(layout.HIDDEN, layout.LOCK)):
            return False
        return not self.unfinished(self.shard.of)

    def unfinished(self, of: int) -> list[int]:
        """Those of so many shards that have not finished."""
        return [
            index
            for index in range(1, of + 1)
            if self.hidden.status(layout.finished_name(layout.shard_suffix(index, of))) is None
        ]

    def _close_staging(self) -> None:
        self.staging.close()
        with contextlib.suppress(OSError):  # not where a pack waits to be continued
            os.rmdir(layout.staging_name(self.suffix), dir_fd=self.hidden.descriptor)

    def leave(self) -> None:
        """Release the locks, and remove an empty staging folder."""
        self._stack.close()

    def failed(self, error: OSError, path: str) -> OutputError:
        """Turn an error of the system about a file of the folder into a message for the user."""
        return not_written(path, error)


def _content(path: str) -> bytes:
    root = open_root(path)
    try:
        return _record_bytes(root) or b""
    finally:
        root.close()


def _read_record(root: SafeFolder) -> RunRecord | None:
    content = _record_bytes(root)
    return None if content is None else decode_record(content, root.join(RECORD))


def _record_bytes(root: SafeFolder) -> bytes | None:
    path = root.join(RECORD)
    try:
        descriptor = root.open(RECORD, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    with open(descriptor, "rb") as file:
        try:
            content = file.read(LARGEST_RECORD + 1)
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > LARGEST_RECORD:
        raise OutputError(f"{path}: is no record of a run: say another -o")
    return content
