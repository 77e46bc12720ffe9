"""Advisory locks, which end with the process that holds them; one on a folder leaves no file.

That one holds among the processes of one machine: over NFS the system locks a folder without asking
the server, so that another machine sees nothing of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fusecli.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

# EBADF: where only what is open for writing can be locked, which a folder never is.
_WITHOUT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)

LockKind = Literal["exclusive", "shared"]
Held = Literal["held", "others hold it", "no locks here"]


@contextmanager
def folder_lock(path: str, kind: LockKind) -> Iterator[Held]:
    """Try to lock a folder for the block, among the processes of this machine, without waiting.

    Args:
        path: of the folder.
        kind: "exclusive", or "shared" by any number of processes.

    Returns:
        "held"; "others hold it", in a kind that does not go with this one; or "no locks here",
        where the system or the file system has none.

    Raises:
        OutputError: the folder cannot be opened.
    """
    if fcntl is None:
        yield "no locks here"
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from None
    try:
        yield try_flock(descriptor, kind, path)
    finally:
        os.close(descriptor)


def try_flock(descriptor: int, kind: LockKind, path: str) -> Held:
    """Take or change the lock of an open file or folder, without waiting.

    Args:
        descriptor: of it.
        kind, path, and what is returned: as for `folder_lock`.

    Raises:
        OutputError: the system refuses it for another reason.
    """
    wanted = fcntl.LOCK_EX if kind == "exclusive" else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, wanted | fcntl.LOCK_NB)
    except BlockingIOError:
        return "others hold it"
    except OSError as error:
        if error.errno in _WITHOUT:
            return "no locks here"
        raise OutputError(f"{path}: cannot be locked: {error.strerror or error}") from None
    return "held"
