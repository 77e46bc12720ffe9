"""Folders used through their descriptors: links in them are never followed.

An output folder may be shared or downloaded, and somebody may have put links into it. Every name
is looked up relative to an open descriptor, so that nothing outside the folder is read, written or
removed, even if somebody exchanges names at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from fusecli.errors import OutputError
from fusecli.features.new_name import rename_to_new

_FLAGS = getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)
_KEPT_FOLDERS = 128  # descriptors of result folders that stay open, where the system has them


class InTheWayError(OutputError):
    """The name is taken by something that fusecli did not write."""


def appeared(path: str) -> InTheWayError:
    """The error for a file that appeared under a result's name after the name was found free."""
    return InTheWayError(
        f"{path}: somebody else has made this file meanwhile: move it to another folder, and run "
        "the same command again"
    )


class SafeFolder:
    """An open folder.

    Args:
        path: for messages.
        descriptor: of the folder; closed by `close`.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def join(self, name: str) -> str:
        """A path in the folder, for messages."""
        return os.path.join(self.path, name)

    def folder(self, name: str, make: bool = False) -> SafeFolder:
        """A folder in this one.

        Args:
            name: without a `/`.
            make: create it if it is missing.

        Raises:
            InTheWayError: a link or a file has this name.
            OSError: it is missing, or the system does not allow it.
        """
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
        flags = os.O_RDONLY | _FOLDER | _NO_LINK | _FLAGS
        try:
            descriptor = os.open(name, flags, dir_fd=self.descriptor)
        except OSError as error:
            self._refuse_kind(name, "folder", error)
            raise
        return SafeFolder(self.join(name), descriptor)

    def open(self, name: str, flags: int) -> int:
        """The descriptor of a regular file; a pipe or device is refused and never waited for.

        Raises:
            InTheWayError: a link, folder, pipe or device has this name.
            OSError: it is missing, or the system does not allow it.
        """
        flags |= _NO_LINK | _NO_WAIT | _FLAGS
        try:
            descriptor = os.open(name, flags, 0o666, dir_fd=self.descriptor)
        except OSError as error:
            self._refuse_kind(name, "file", error)
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InTheWayError(f"{self.join(name)}: is no regular file: remove it")
        return descriptor

    def _refuse_kind(self, name: str, wanted: str, error: OSError) -> None:
        """Raises InTheWayError if the system refused because of what has the name."""
        kinds = (errno.ELOOP, errno.EMLINK, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
        if error.errno not in kinds:
            return
        status = self.status(name)
        if status is None:
            return
        kind = "a file" if stat.S_ISREG(status.st_mode) else "a device or pipe"
        if stat.S_ISLNK(status.st_mode):
            kind = "a link, which is not followed in an output folder"
        elif stat.S_ISDIR(status.st_mode):
            kind = "a folder"
        raise InTheWayError(f"{self.join(name)}: is {kind}; expected a {wanted}: remove it")

    def status(self, name: str) -> os.stat_result | None:
        """The status of the entry with this name, without following a link; None if there is
        none."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self) -> list[str]:
        """The names in the folder, sorted.

        Raises:
            OSError: it cannot be listed.
        """
        return sorted(os.listdir(self.descriptor))

    def unlink(self, name: str) -> None:
        """Remove a file or link, if it is there.

        Raises:
            OSError: the system does not allow it.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def move(self, name: str, to: SafeFolder, new: str) -> None:
        """Rename a file, also into another folder; replaces what has the new name.

        Raises:
            OSError: the system does not allow it.
        """
        os.rename(name, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)

    def move_to_new(self, name: str, to: SafeFolder, new: str) -> None:
        """Rename a file, also into another folder, unless something has the new name.

        Raises:
            FileExistsError: something has it.
            OSError: the system does not allow it.
        """
        rename_to_new(name, new, self.descriptor, to.descriptor)

    def sync(self) -> None:
        """Flush the folder's names to the disk.

        Raises:
            OSError: the disk failed.
        """
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


def open_root(path: str) -> SafeFolder:
    """Open a folder that the user named; it may be a link itself.

    Raises:
        OSError: it is missing or no folder.
    """
    return SafeFolder(path, os.open(path, os.O_RDONLY | _FOLDER | _FLAGS))


def _kept_folders() -> int:
    """How many descriptors may stay open: an eighth of what the system gives a process."""
    if resource is None:
        return _KEPT_FOLDERS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _KEPT_FOLDERS if soft < 0 else max(1, min(_KEPT_FOLDERS, soft // 8))


class ResultFolders:
    """The folders of results below an output folder; the most recently used ones stay open.

    Args:
        root: the output folder.
    """

    def __init__(self, root: SafeFolder) -> None:
        self._root, self._kept = root, _kept_folders()
        self._open: OrderedDict[str, SafeFolder] = OrderedDict()
        self._made: list[tuple[str, str]] = []  # parent folder and name

    def parent(self, output: str, make: bool) -> tuple[SafeFolder, str]:
        """The open folder of a result, and the result's name in it.

        Args:
            output: relative path with `/`.
            make: create missing folders.

        Raises:
            InTheWayError: a part of the path is a link or a file, or leads out of the folder.
            OSError: a folder is missing, or the system does not allow it.
        """
        path, _, name = output.rpartition("/")
        return self._folder(path, make), name

    def _folder(self, path: str, make: bool) -> SafeFolder:
        if not path:
            return self._root
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        above, _, name = path.rpartition("/")
        if name in ("", ".", ".."):  # journals may have been changed by others
            raise InTheWayError(f"{self._root.join(path)}: is no folder of results")
        parent = self._folder(above, make)
        new = make and parent.status(name) is None
        folder = parent.folder(name, make)
        if new:
            self._made.append((above, name))
        self._open[path] = folder
        while len(self._open) > self._kept:
            self._open.popitem(last=False)[1].close()
        return folder

    def made(self) -> list[SafeFolder]:
        """Open folders in which names may have changed."""
        return [self._root, *self._open.values()]

    def remove_empty(self) -> None:
        """Remove the folders that were created here and are empty."""
        for above, name in reversed(self._made):
            with contextlib.suppress(OSError, OutputError):
                os.rmdir(name, dir_fd=self._folder(above, False).descriptor)

    def close(self) -> None:
        """Close all descriptors but the root's."""
        for folder in self._open.values():
            folder.close()
        self._open.clear()
