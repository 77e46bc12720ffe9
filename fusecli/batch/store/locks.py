"""Advisory locks of whole files; a lock ends with the process that holds it."""

from __future__ import annotations

import errno
from typing import Literal

from fusecli.errors import FuseError, OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WITHOUT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

LockKind = Literal["exclusive", "shared"]


def check_platform() -> None:
    """Raises:
    FuseError: this system has no such locks.
    """
    if fcntl is None:
        raise FuseError(
            "fusecli batch needs a POSIX system (Linux or macOS; on Windows: WSL), since its "
            "runs lock their output folder with flock"
        )


def try_lock(descriptor: int, kind: LockKind, path: str) -> bool:
    """Take or change a lock without waiting; false if somebody else holds it.

    Args:
        descriptor: of the open file.
        kind: "exclusive", or "shared" by any number of processes.
        path: of the file, for the error.

    Raises:
        OutputError: the file system has no locks.
    """
    wanted = fcntl.LOCK_EX if kind == "exclusive" else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, wanted | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _failed(path, error) from None
    return True


def unlock(descriptor: int) -> None:
    """Give a lock back."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _failed(path: str, error: OSError) -> OutputError:
    if error.errno in _WITHOUT:
        return OutputError(
            f"{path}: cannot be locked, its file system has no locks ({error.strerror}): say -o "
            "with a folder on another file system"
        )
    return OutputError(f"{path}: cannot be locked: {error.strerror or error}")
