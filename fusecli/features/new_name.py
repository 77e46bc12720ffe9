"""Give a finished file its name, unless another file has appeared under that name.

`os.rename` would replace that file without an error. Three ways are tried, in this order:

1. A hard link under the new name. The system refuses it where the name is taken.
2. `renameat2` of Linux with RENAME_NOREPLACE, for file systems without hard links (FAT, exFAT).
3. An empty file, made only where the name is free, which the finished file then replaces. A power
   cut between the two leaves the empty file. So this is only for file systems without 1 and 2.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys

_NO_LINKS = (
    *(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS),
    *(errno.EINVAL, errno.EMLINK, errno.EXDEV),  # EXDEV: some have none between folders
)
_NO_FLAGS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NOREPLACE = 1  # renameat2(2)
_AT_FDCWD = -100


def rename_to_new(
    staged: str, path: str, staged_folder: int | None = None, folder: int | None = None
) -> None:
    """Rename a file, unless something has the new name.

    Args:
        staged: its name.
        path: the new name.
        staged_folder, folder: descriptors of the folders that the names are relative to.

    Raises:
        FileExistsError: something has the new name; nothing was changed.
        OSError: the system does not allow it.
    """
    if os.name == "nt":  # where a rename does not replace
        os.rename(staged, path)
        return
    try:
        os.link(staged, path, src_dir_fd=staged_folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # A slow file server may get the request twice, and refuses the second: the link is ours.
        if not _same(staged, path, staged_folder, folder):
            raise
    except (OSError, NotImplementedError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LINKS:
            raise
        if not _rename_noreplace(staged, path, staged_folder, folder):
            _claim_and_rename(staged, path, staged_folder, folder)
        return
    with contextlib.suppress(OSError):  # the file has its name; a later run removes the old one
        os.unlink(staged, dir_fd=staged_folder)


def _rename_noreplace(
    staged: str, path: str, staged_folder: int | None, folder: int | None
) -> bool:
    """Rename with RENAME_NOREPLACE; false where the system does not have it.

    Raises:
        OSError: the system has it, and the rename failed.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if sys.platform != "linux" or function is None:
        return False
    old, new = (_AT_FDCWD if fd is None else fd for fd in (staged_folder, folder))
    if not function(old, os.fsencode(staged), new, os.fsencode(path), _NOREPLACE):
        return True
    number = ctypes.get_errno()
    if number in _NO_FLAGS:
        return False
    raise OSError(number, os.strerror(number), path)


def _claim_and_rename(
    staged: str, path: str, staged_folder: int | None, folder: int | None
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(path, flags, 0o600, dir_fd=folder)
    try:
        claim = os.fstat(descriptor)
        try:
            os.rename(staged, path, src_dir_fd=staged_folder, dst_dir_fd=folder)
        except BaseException:
            now = os.stat(path, dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(claim, now) and now.st_size == 0:
                os.unlink(path, dir_fd=folder)
            raise
    finally:
        os.close(descriptor)


def _same(staged: str, path: str, staged_folder: int | None, folder: int | None) -> bool:
    try:
        ours = os.stat(staged, dir_fd=staged_folder, follow_symlinks=False)
        found = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(ours, found)
