"""Whether a file was changed while it was read, whatever its size and its time say."""

from __future__ import annotations

import os
import time

# Linux counts the times of files in steps of up to 10 ms. A change in the step in which the file
# was opened would not be seen; a file that small writers finish in one call needs no such care.
_STEP = 20_000_000  # ns
_LARGE = 1 << 20


def version_of(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size, and both times of change; the last one no program can set."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def was_changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether the content of an open file was changed between two looks at it.

    A new file that took its name, a further link, or other rights leave the content as it is.
    """
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return True
    rest = [(s.st_nlink, s.st_mode, s.st_uid, s.st_gid) for s in (before, after)]
    return before.st_ctime_ns != after.st_ctime_ns and rest[0] == rest[1]


def settled_status(descriptor: int) -> os.stat_result:
    """What there is to know of an open file; `was_changed` sees every later change.

    Waits, for 20 ms at most, where a large file was changed just now.
    """
    status = os.fstat(descriptor)
    age = time.time_ns() - status.st_ctime_ns
    if status.st_size >= _LARGE and 0 <= age < _STEP:
        time.sleep((_STEP - age) / 1e9)
        status = os.fstat(descriptor)
    return status
