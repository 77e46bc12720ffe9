"""Advisory locks of whole files; a lock ends with the process that holds it."""

from __future__ import annotations

from fusecli.errors import FuseError, OutputError
from fusecli.features.folder_lock import LockKind, try_flock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
        OutputError: the file system has no locks, or the system refuses this one.
    """
    held = try_flock(descriptor, kind, path)
    if held == "no locks here":
        raise OutputError(
            f"{path}: cannot be locked, its file system has no locks: say -o with a folder on "
            "another file system"
        )
    return held == "held"


def unlock(descriptor: int) -> None:
    """Give a lock back."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
