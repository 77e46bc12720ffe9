"""Results as one file for each pair: complete under its final name, or missing.

Many files are written under temporary names, in a folder inside the output folder. Then all are
flushed to the disk at once, each file gets its final name, and its line goes to the journal, in
this order. So neither a killed process nor a power cut leaves a partial file under a final name,
and the journal never names a file that does not exist.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import NamedTuple

from fusecli.batch.store.cleanup import delete_result, delete_staged
from fusecli.batch.store.encode import Encoder
from fusecli.batch.store.entries import done_entry, failed_entry
from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.history import PairState, path_told
from fusecli.batch.store.journal import Entry
from fusecli.batch.store.layout import staging_name
from fusecli.batch.store.result import Result
from fusecli.batch.store.safe_folder import InTheWayError, appeared
from fusecli.batch.tuning import Tuning
from fusecli.errors import OutputError
from fusecli.features.atomic import bring_to_disk
from fusecli.pairs.open import Pair, relative_path


class _StagedResult(NamedTuple):
    """A file that is written and has no final name yet."""

    name: str  # in the staging folder
    output: str  # path in the output folder
    is_new: bool  # nothing had this path when the file was written


class FileSink:
    """Writes one file for each pair.

    Args:
        folder: the output folder, begun.
        encoder: makes the files.
        ending: of the files of pairs whose source names none.
        tuning: how many results may wait for the disk.
    """

    def __init__(
        self,
        folder: OutputFolder,
        encoder: Encoder,
        ending: str,
        tuning: Tuning,
    ) -> None:
        self._folder, self._encoder, self._ending, self._tuning = folder, encoder, ending, tuning
        self._staged: list[_StagedResult] = []
        self._entries: list[Entry] = []
        self._bytes = self._count = 0
        self._committed = time.monotonic()
        try:  # of a run that was killed
            delete_staged(folder.hidden, staging_name(folder.suffix))
        except OSError as error:
            raise folder.failed(error, folder.staging.path) from None

    def output_of(self, pair: Pair) -> str:
        """Path of a pair's file, relative to the output folder, with `/`."""
        return relative_path(pair.id, self._ending) if pair.output is None else pair.output

    def is_valid(self, entry: Entry) -> bool:
        """Always true: `exists` looks at the files later."""
        return True

    def unfinished(self, entry: Entry) -> bytes | None:
        """Always None: a result that the journal names has its name."""
        return None

    def exists(self, pair: Pair, state: PairState) -> bool:
        """Whether a pair's file is the one that the journal names, and exists with the size that it
        says (0: any size)."""
        output = self.output_of(pair)
        if path_told(output) != state.output:
            return False  # a manifest names another one now
        return file_exists(self._folder, output, state.size)

    def delete_result(self, pair: Pair) -> None:
        """Remove the file that an earlier run made of a pair which has no result any more.

        Raises:
            OutputError: the folder does not allow it.
        """
        self.delete_entry(Entry(pair.id, self.output_of(pair), None, None, []))

    def delete_entry(self, entry: Entry) -> None:
        """Remove the file that a line of a journal names.

        Raises:
            OutputError: the folder does not allow it.
        """
        try:
            delete_result(self._folder.results, entry, self._folder.protected)
        except OSError as error:
            raise self._folder.failed(error, self._folder.inside(str(entry.output))) from None

    def write(self, results: list[Result]) -> None:
        """Write results under temporary names; `commit` gives them their final names.

        Raises:
            OutputError: they cannot be written.
        """
        for result in results:
            if result.tensors is not None:
                output = self.output_of(result.pair)
                result.error, is_free = self._look_at(result.pair, output)
            if result.error is not None or result.tensors is None:
                result.tensors = None
                self._entries.append(failed_entry(result))
                continue
            size = self._stage(output, result, is_free)
            self._bytes += size
            self._entries.append(done_entry(result, output, size=size))
        tuning = self._tuning
        if (
            time.monotonic() - self._committed > tuning.commit_seconds
            or self._bytes > tuning.commit_bytes
            or len(self._entries) > tuning.commit_files
        ):
            self.commit()

    def commit(self) -> None:
        """Give all written files their final names, and note them in the journal.

        Raises:
            OutputError: they cannot be written.
        """
        folder = self._folder
        assert folder.journal is not None
        path = folder.staging.path
        try:
            if self._staged:
                bring_to_disk(path, [os.path.join(path, each.name) for each in self._staged])
            while self._staged:
                staged = self._staged[-1]
                path = folder.inside(staged.output)
                parent, final = folder.results.parent(staged.output, make=True)
                if staged.is_new:
                    folder.staging.move_to_new(staged.name, parent, final)
                else:
                    folder.staging.move(staged.name, parent, final)
                self._staged.pop()
        except FileExistsError:
            raise appeared(path) from None
        except OSError as error:
            raise folder.failed(error, path) from None
        folder.journal.append(self._entries)
        self._entries.clear()
        self._bytes, self._committed = 0, time.monotonic()

    def finish(self) -> None:
        """Give the last files their final names, and flush names and journal to the disk.

        Raises:
            OutputError: they cannot be written.
        """
        self.commit()
        folder = self._folder
        assert folder.journal is not None
        try:
            if sys.platform == "linux":  # one call for all folders
                bring_to_disk(folder.path, [])
            else:
                for made in folder.results.made():
                    made.sync()
        except OSError as error:
            raise folder.failed(error, folder.path) from None
        folder.journal.sync()

    def rollback(self) -> None:
        """Remove files that do not have their final names yet."""
        for staged in self._staged:
            with contextlib.suppress(OSError):
                self._folder.staging.unlink(staged.name)
        if self._staged:
            self._folder.results.remove_empty()
        self._staged.clear()
        self._entries.clear()

    def _stage(self, output: str, result: Result, is_new: bool) -> int:
        """Write a file under a temporary name; returns its size."""
        assert result.tensors is not None
        self._count += 1
        name = str(self._count)
        ending = os.path.splitext(output)[1].lower()
        self._staged.append(_StagedResult(name, output, is_new))
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = self._folder.staging.open(name, flags)
            try:
                buffers = self._encoder.encode(result.tensors, ending)
                return self._tuning.write_all(descriptor, buffers)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._folder.failed(error, self._folder.inside(output)) from None

    def _look_at(self, pair: Pair, output: str) -> tuple[str | None, bool]:
        """Why a pair's result cannot have its name (an input, a folder or a link has it), and
        whether the name is free."""
        folder = self._folder
        try:
            parent, name = folder.results.parent(output, make=True)
            status = parent.status(name)
        except InTheWayError as error:
            return str(error), False
        except OSError as error:
            raise folder.failed(error, folder.inside(output)) from None
        if status is None:
            return None, True
        if folder.protected.holds(status):
            of = "this pair" if _is_one_of(status, pair.files) else "this run"
            return f"{output}: is an input of {of}, and inputs are never changed", False
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            why = f"{folder.inside(output)}: is {kind}; the result needs this name: remove it"
            return why, False
        return None, False


def file_exists(folder: OutputFolder, output: str, size: int) -> bool:
    """Whether a result exists, as a regular file of this size (0: of any size)."""
    try:
        parent, name = folder.results.parent(output, make=False)
        status = parent.status(name)
    except (OSError, OutputError, ValueError):
        return False
    return (
        status is not None
        and stat.S_ISREG(status.st_mode)
        and status.st_size == (size or status.st_size)
    )


def _is_one_of(status: os.stat_result, names: list[str]) -> bool:
    for name in names:
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.stat(name)):
                return True
    return False
