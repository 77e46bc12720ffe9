"""A lock on a folder, which ends with the process that holds it and leaves no file behind.

It holds among the processes of one machine: over NFS the system locks a folder without asking the
server, so that another machine sees nothing of it.
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

Held = Literal["held", "others hold it", "no locks here"]


@contextmanager
def folder_lock(path: str, kind: Literal["exclusive", "shared"]) -> Iterator[Held]:
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
        yield _try(descriptor, fcntl.LOCK_EX if kind == "exclusive" else fcntl.LOCK_SH, path)
    finally:
        os.close(descriptor)


def _try(descriptor: int, wanted: int, path: str) -> Held:
    try:
        fcntl.flock(descriptor, wanted | fcntl.LOCK_NB)
    except BlockingIOError:
        return "others hold it"
    except OSError as error:
        if error.errno in _WITHOUT:
            return "no locks here"
        raise OutputError(f"{path}: cannot be locked: {error.strerror or error}") from None
    return "held"
