"""Files on disk: complete or not there at all; and the one wording of write errors.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed.
`publish_all` does this for several files of which all are to appear or none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Sequence
from typing import IO

from fusecli.errors import OutputError, UsageError, refuse_empty_name
from fusecli.features.leftovers import hold, sweep, temporary_name
from fusecli.features.new_name import rename_to_new

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_BUFFERS = 512  # Linux takes 1,024 in one call
_COPIED = 1 << 20  # bytes at once


def not_written(where: str, error: OSError) -> OutputError:
    """Turn the system's error about a file that cannot be written into a message for the user."""
    remedy = ": free space and run the same command again" if error.errno in _FULL else ""
    return OutputError(f"{where}: cannot be written: {error.strerror or error}{remedy}")


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview]) -> int:
    """Write buffers one after the other, also if the system writes only a part at once.

    Returns:
        Bytes written.

    Raises:
        OSError: the disk is full, or a limit is reached.
    """
    left = [memoryview(part) for part in buffers if len(part)]
    total = 0
    while left:
        written = os.writev(descriptor, left[:_MOST_BUFFERS])
        total += written
        while written and left:
            if written < len(left[0]):
                left[0] = left[0][written:]
                break
            written -= len(left.pop(0))
    return total


def bring_to_disk(folder: str, files: Sequence[str]) -> None:
    """Return when files are on the disk, so that a power cut cannot empty them.

    Linux flushes a whole file system in one call, which for thousands of small files is
    hundreds of times quicker than a call for each.

    Raises:
        OSError: the disk is full, or failed.
    """
    if sys.platform == "linux":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syncfs(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), folder)
        finally:
            os.close(descriptor)
        return
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: str) -> None:
    """Return when the names in a folder are on the disk; a power cut could undo a rename.

    Raises:
        OSError: the disk failed.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Staged:
    """A file that is being written; only `publish` puts it in its place.

    Used as a context manager: leaving it without `publish` removes every trace. `begin` creates
    the file, inside the context, so that it is removed whenever a signal comes.

    Args:
        shown: what errors call it.
    """

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._handle: IO[bytes] | None = None

    @property
    def handle(self) -> IO[bytes]:
        """The open file."""
        assert self._handle is not None, "begin comes first"
        return self._handle

    def failed(self, error: OSError) -> OutputError:
        """Turn the system's error about this file into a message for the user."""
        return not_written(self._shown, error)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OutputError: the disk is full, or a limit is reached.
        """
        try:
            self.handle.write(data)
        except OSError as error:
            raise self.failed(error) from None

    def flush(self) -> None:
        """Flush everything to the disk.

        Raises:
            OutputError: the disk is full, or failed.
        """
        try:
            self.handle.flush()
            os.fsync(self.handle.fileno())
        except OSError as error:
            raise self.failed(error) from None

    def publish(self) -> None:
        """Put the finished file in its place.

        Raises:
            OutputError: the folder or the disk does not allow it; an older file of that name
                is there as before.
        """
        publish_all([self])

    def take_place(self) -> None:
        """The step of `publish` after `flush`; `rollback` undoes it until `settle` is called."""
        raise NotImplementedError

    def rollback(self) -> None:
        """Undo `take_place`, also where it failed half-way."""

    def settle(self) -> None:
        """Give up the possibility of a rollback."""

    def _close(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.close()

    def __exit__(self, *error: object) -> None:
        self._close()


class StagedFile(Staged):
    """A file that appears under its name only when it is complete.

    Args:
        path: the name it will have.
        replace: it takes the place of a file of this name, also of one that appears while it is
            written. Otherwise such a file stays, and this one gets no name.
    """

    def __init__(self, path: str, replace: bool = True) -> None:
        super().__init__(path)
        self._replace = replace
        # A link stays a link: its target is replaced.
        self.path = os.path.realpath(path)
        self._folder = os.path.dirname(self.path)
        # Every run has its own temporary name, so that two runs with one output do not collide.
        self.staged = os.path.join(self._folder, temporary_name())
        self._older = os.path.join(self._folder, temporary_name())  # the replaced file
        self._own: os.stat_result | None = None  # once it may have the name
        self._has_older = False

    def begin(self) -> StagedFile:
        """Make the file, under its temporary name.

        Raises:
            OutputError: the folder does not allow it.
        """
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            what = "directory" if os.path.isdir(self.path) else "device or pipe"
            raise OutputError(f"{self._shown}: is a {what}, expected a file")
        sweep(self._folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self.staged, flags, 0o666)
        except OSError as error:
            raise self.failed(error) from None
        self._handle = os.fdopen(descriptor, "w+b")
        hold(descriptor)
        return self

    def take_place(self) -> None:
        """Give the flushed file its name.

        Raises:
            OutputError: the folder or the disk does not allow it, or a file that must not be
                replaced has appeared.
        """
        try:
            if self._replace:
                self._keep_older()
            self._own = os.fstat(self.handle.fileno())
            if os.name == "nt":  # where an open file cannot be renamed
                self.handle.close()
            if self._replace:
                os.replace(self.staged, self.path)
            else:
                rename_to_new(self.staged, self.path)
            sync_folder(self._folder)
        except FileExistsError:
            if os.path.isdir(self.path):
                raise OutputError(
                    f"{self._shown}: is a folder now, which somebody else has made: say another "
                    "name"
                ) from None
            raise OutputError(
                f"{self._shown}: somebody else has made this file meanwhile, and it stays: say "
                "another name, or --force to replace it"
            ) from None
        except OSError as error:
            raise self.failed(error) from None

    def rollback(self) -> None:
        """Give the name back to the older file, or remove the new file.

        What somebody else has put in its place meanwhile stays.
        """
        own, self._own = self._own, None
        with contextlib.suppress(OSError):
            if own is not None and os.path.samestat(own, os.lstat(self.path)):
                if self._has_older:
                    os.replace(self._older, self.path)
                else:
                    os.unlink(self.path)
        self.settle()

    def settle(self) -> None:
        """Remove the older file."""
        if self._has_older:
            with contextlib.suppress(OSError):
                os.unlink(self._older)
            self._has_older = False

    def _keep_older(self) -> None:
        """A second name for the file that is to be replaced; a copy where there are no links."""
        if not os.path.isfile(self.path):
            return
        self._has_older = True
        try:
            os.link(self.path, self._older)
        except (OSError, AttributeError):  # Windows and some file systems have no links
            shutil.copy2(self.path, self._older)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self.staged)  # after `publish` there is none


class StagedStdout(Staged):
    """A file without a name, which is copied to stdout only when it is complete."""

    def __init__(self) -> None:
        super().__init__("stdout (held in $TMPDIR until it is whole)")
        self._copied = 0

    def begin(self) -> StagedStdout:
        """Make the file.

        Raises:
            OutputError: $TMPDIR does not allow it.
        """
        import tempfile

        try:
            self._handle = tempfile.TemporaryFile(prefix="fusecli-")  # noqa: SIM115 - __exit__
        except OSError as error:
            raise self.failed(error) from None
        return self

    def flush(self) -> None:
        """Write what is buffered; a file without a name need not survive a power cut.

        Raises:
            OutputError: $TMPDIR is full.
        """
        try:
            self.handle.flush()
        except OSError as error:
            raise self.failed(error) from None

    def take_place(self) -> None:
        """Copy it to stdout, which cannot be undone.

        Raises:
            OutputError: $TMPDIR cannot be read.
            OSError: stdout does not take it.
        """
        stdout = sys.stdout.buffer
        while data := self._read():
            stdout.write(data)
        stdout.flush()

    def _read(self) -> bytes:
        try:
            if self._copied == 0:
                self.handle.seek(0)
            data = self.handle.read(_COPIED)
        except OSError as error:
            why = error.strerror or error
            raise OutputError(f"{self._shown}: cannot be read: {why}") from None
        self._copied += len(data)
        return data

    def __enter__(self) -> StagedStdout:
        return self


def publish_all(files: Sequence[Staged]) -> None:
    """Give several finished files their names: all of them, or none.

    Everything is on the disk before the first gets its name. What goes to stdout goes last,
    since it cannot be taken back.

    Raises:
        OutputError: a folder or the disk does not allow it; older files of those names are
            there as before.
        OSError: stdout does not take the result.
    """
    for file in files:
        file.flush()
    ordered = sorted(files, key=lambda file: isinstance(file, StagedStdout))
    try:
        for file in ordered:
            file.take_place()
    except BaseException:
        for file in reversed(ordered):
            file.rollback()
        raise
    for file in ordered:
        file.settle()


def check_target(path: str, force: bool, inputs: list[str], endings: tuple[str, ...]) -> None:
    """Before any work, refuse an output that cannot or should not be written.

    Args:
        path: where it would go; "-" is no file.
        force: an existing file may be replaced.
        inputs: the files the job reads, which are never replaced.
        endings: those that are possible.

    Raises:
        UsageError: no name, or its ending is not one of them.
        OutputError: no such folder, a file that exists, one of the inputs, no regular file.
    """
    refuse_empty_name(path)
    if path == "-":
        raise UsageError(
            "-: only fused rows go to stdout, this goes to a file: say a name that ends in "
            f"{' or '.join(endings)}"
        )
    ending = os.path.splitext(path)[1].lower()
    if ending not in endings:
        raise UsageError(
            f"{path}: an output ends in {' or '.join(endings)}, found {ending or 'no ending'}"
        )
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: its folder {folder} does not exist: make it first")
    if not os.path.lexists(path):
        return
    for name in inputs:
        if (
            name != "-"
            and os.path.exists(name)
            and os.path.exists(path)
            and os.path.samefile(name, path)
        ):
            raise OutputError(
                f"{path}: is also an input, and inputs are never changed: say another name"
            )
    if os.path.exists(path) and not os.path.isfile(path):
        what = "directory" if os.path.isdir(path) else "device or pipe"
        raise OutputError(f"{path}: is a {what}, expected a file (use -o - for stdout)")
    if not force:
        raise OutputError(f"{path}: exists already: say --force to replace it")
