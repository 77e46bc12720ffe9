"""Whether a file was changed while it was read, whatever its size and its time say."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

# Linux counts the times of files in steps of up to 10 ms. A change in the step in which the file
# was opened would not be seen; a file that small writers finish in one call needs no such care.
_STEP = 20_000_000  # ns
_LARGE = 1 << 20


class FileVersion(NamedTuple):
    """Device, inode, size, and both times of change in nanoseconds; the last no program can set."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of change, which a copy may keep."""
        return self.size, self.modified


def version_of(status: os.stat_result) -> FileVersion:
    """Of what the system says of a file."""
    return FileVersion(
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def was_changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether the content of an open file seems to have been changed between two looks at it.

    Where size and time are as before, the time that no program can set decides. A further link,
    other rights, or a new file that took its name set it too, and are told by what else they
    change: a rewrite together with one of them, with size and time set back, is not seen. A rename
    and a new access time (`touch -a`) leave nothing else, and are taken for a rewrite.
    """
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return True
    rest = [(s.st_nlink, s.st_mode, s.st_uid, s.st_gid) for s in (before, after)]
    return before.st_ctime_ns != after.st_ctime_ns and rest[0] == rest[1]


def settled_status(descriptor: int) -> os.stat_result:
    """What there is to know of an open file, for `was_changed` to compare with later.

    Waits, for 20 ms at most, where a large file was changed just now.
    """
    status = os.fstat(descriptor)
    age = time.time_ns() - status.st_ctime_ns
    if status.st_size >= _LARGE and 0 <= age < _STEP:
        time.sleep((_STEP - age) / 1e9)
        status = os.fstat(descriptor)
    return status
