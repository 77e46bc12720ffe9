"""From the system's memory to the disk."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence

from fusecli.errors import OutputError

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
