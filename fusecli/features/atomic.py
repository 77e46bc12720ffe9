"""From the system's memory to the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from typing import IO

from fusecli.errors import OutputError, UsageError, refuse_empty_name

_FULL = (errno.ENOSPC, errno.EDQUOT)


def not_written(where: str, error: OSError) -> OutputError:
    """What the system said about a file of a run, as the user's error."""
    remedy = ": free space and run the same command again" if error.errno in _FULL else ""
    return OutputError(f"{where}: cannot be written: {error.strerror or error}{remedy}")


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview]) -> int:
    """Write buffers one after the other, however the system cuts them.

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


_MOST_BUFFERS = 512  # Linux takes 1,024 in one call


def bring_to_disk(folder: str, files: Sequence[str]) -> None:
    """Return when files are on the disk, so that a power cut cannot stack them.

    Linux brings a whole file system there in one call, which for thousands of small files is
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
    # Without it a power cut can stack the rename, though not the file's contents.
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StagedFile:
    """A file that appears under its name only when `publish` is called.

    Used as a context manager: leaving it without `publish` removes every trace. The file is
    made by `begin`, inside the context, so that a signal at any moment finds it cleaned up.

    Args:
        path: the name it will have.
        shown: what errors call it, where that is not its name.
    """

    def __init__(self, path: str, shown: str | None = None) -> None:
        # A link keeps pointing where it did: its target is what is replaced.
        self.path = os.path.realpath(path)
        self._shown = shown or path
        # A name of its own for every run: two on one output do not meet.
        part = f".fusecli-{os.urandom(8).hex()}.part"
        self.staged = os.path.join(os.path.dirname(self.path), part)
        self._handle: IO[bytes] | None = None

    def begin(self) -> StagedFile:
        """Make the file, under its temporary name.

        Raises:
            OutputError: the folder does not allow it.
        """
        try:
            descriptor = os.open(self.staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise not_written(self._shown, error) from None
        self._handle = os.fdopen(descriptor, "w+b")
        return self

    @property
    def handle(self) -> IO[bytes]:
        """The open file."""
        assert self._handle is not None, "begin comes first"
        return self._handle

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OutputError: the disk is full, or a limit is reached.
        """
        try:
            self.handle.write(data)
        except OSError as error:
            raise not_written(self._shown, error) from None

    def flush(self) -> None:
        """Bring everything to the disk.

        Raises:
            OutputError: the disk is full, or failed.
        """
        try:
            self.handle.flush()
            os.fsync(self.handle.fileno())
        except OSError as error:
            raise not_written(self._shown, error) from None

    def publish(self) -> None:
        """Give the finished file its name.

        Raises:
            OutputError: the folder or the disk does not allow it.
        """
        self.flush()
        try:
            self.handle.close()
            os.replace(self.staged, self.path)
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise not_written(self._shown, error) from None

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.close()
        with contextlib.suppress(OSError):
            os.unlink(self.staged)  # after `publish` there is none


def check_target(path: str, force: bool, inputs: list[str], endings: tuple[str, ...]) -> None:
    """Refuse an output that could not or should not be written, before any work.

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
