"""Names of temporary files that say whose they are, and the removal of what dead runs left.

A temporary file is called `.fusecli-PID-START-RANDOM@HOST.part`: process id, start time of that
process in clock ticks since boot (0 where the system does not tell), eight random digits and
the host's name. Its owner holds a lock on it for as long as the file has this name. A run that
writes into the same folder later removes it if the owner is gone:

1. Files of other hosts stay: their processes cannot be seen from here.
2. If the process lives (same id and same start time), the file stays.
3. If a process holds the lock, the file stays. This covers a container or a host of the same
   name whose processes cannot be seen from here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from functools import lru_cache

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is removed there
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.fusecli-(\d{1,10})-(\d{1,20})-[0-9a-f]{8}@([\w.\-]{1,64})\.part", re.ASCII)
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def temporary_name() -> str:
    """A new name, without a folder, for a temporary file of this process."""
    pid = os.getpid()
    random = os.urandom(4).hex()
    return f".fusecli-{pid}-{_own_start(pid)}-{random}@{_host()}.part"


def is_temporary(name: str) -> bool:
    """Whether a name, without a folder, is one that `temporary_name` makes, on any host."""
    return _NAME.fullmatch(name) is not None


def hold(descriptor: int) -> None:
    """Lock a temporary file until the descriptor is closed, where the file system has locks."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: str) -> list[str]:
    """Remove the temporary files in a folder whose owner is gone.

    Never fails: what cannot be looked at or removed stays.

    Args:
        folder: where to look; folders in it are not entered.

    Returns:
        Names of the files that were removed.
    """
    removed: list[str] = []
    if fcntl is None:
        return removed
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = _NAME.fullmatch(name) if name.startswith(".fusecli-") else None
            if match is None or match[3] != _host() or _lives(int(match[1]), int(match[2])):
                continue
            with contextlib.suppress(OSError):
                _remove_if_unlocked(os.path.join(folder, name))
                removed.append(name)
    return removed


def _remove_if_unlocked(path: str) -> None:
    """Raises OSError if the file is locked, is a link or no regular file, or cannot be removed."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        os.unlink(path)
    finally:
        os.close(descriptor)


def _lives(pid: int, start: int) -> bool:
    """Whether the process that is named by its id and start time still runs."""
    # On Windows os.kill ends the process, whatever the signal.
    if pid <= 0 or os.name == "nt":
        return pid > 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it runs as another user
    state, now = _state_and_start(pid)
    return state not in "ZX" and (now == 0 or start == 0 or now == start)


@lru_cache(4)
def _own_start(pid: int) -> int:
    return _state_and_start(pid)[1]


def _state_and_start(pid: int) -> tuple[str, int]:
    """State letter of a process and its start in clock ticks since boot; "?" and 0 if unknown.

    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The program's name stands in brackets and may hold spaces and brackets itself.
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return "?", 0


@lru_cache(1)
def _host() -> str:
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII)[:64] or "unknown"
