"""A layer between the package and the file system: calls are recorded, and one may fail.

Only calls on files under one folder are recorded. Reading and writing through file objects is
recorded too: `open` gives Python objects whose raw reads and writes pass through here.
"""

from __future__ import annotations

import _io
import builtins
import ctypes
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

REAL_OPEN = builtins.open
REMOVALS = ("unlink", "remove", "rmdir")
WRITES = ("write", "writev", "pwrite", "pwritev", "ftruncate", "truncate")


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        name: the function's.
        path: the file, at the time of the call.
        event: what it changed: ("create", path, inode), ("data", inode, content after it),
            ("rename", from, to), ("link", from, to), ("unlink", path), ("mkdir", path),
            ("rmdir", path), ("fsync", inode or path of a folder), ("syncfs",), or None.
    """

    name: str
    path: str
    event: tuple[Any, ...] | None = None


class Layer:
    """Records calls on files under a folder, and lets one of them fail.

    Args:
        root: the folder.
        fail_at: which call fails, counted from 1; 0 for none.
        number: the errno of the failure.
        only: count only calls for which this is true.
    """

    def __init__(
        self,
        root: Path,
        fail_at: int = 0,
        number: int = 0,
        only: Callable[[Call], bool] = lambda call: True,
    ) -> None:
        self.root = os.path.realpath(root)
        self.calls: list[Call] = []
        self.failed: Call | None = None
        self._fail_at, self._number, self._only = fail_at, number, only
        self._counted = 0
        self._inodes: dict[int, int] = {}
        self._next = 0

    # ------------------------------------------------------------------ where a call belongs

    def where(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The file of a call; None if it is not under the folder."""
        if isinstance(path, int):
            try:
                found = os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
            except OSError:
                return None
        else:
            name = os.fsdecode(path)
            if dir_fd is not None:
                name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
            name = os.path.abspath(name)
            found = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        return found if found == self.root or found.startswith(self.root + "/") else None

    def count(self, name: str, path: str) -> None:
        """One more call; raises if it is the one that is to fail."""
        call = Call(name, path)
        self.calls.append(call)
        if self._only(call):
            self._counted += 1
            if self._counted == self._fail_at:
                self.failed = call
                raise OSError(self._number, os.strerror(self._number))

    def changed(self, *event: Any) -> None:
        """What the last call changed."""
        last = self.calls[-1]
        self.calls[-1] = Call(last.name, last.path, event)

    def inode(self, descriptor: int, new: bool = False) -> int:
        """A number for a file that no later file gets."""
        number = os.fstat(descriptor).st_ino
        if new or number not in self._inodes:
            self._next += 1
            self._inodes[number] = self._next
        return self._inodes[number]

    def data(self, descriptor: int) -> None:
        with REAL_OPEN(f"/proc/self/fd/{descriptor}", "rb") as file:
            self.changed("data", self.inode(descriptor), file.read())

    # -------------------------------------------------------------------------- the functions

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = self.where(path, dir_fd)
        if where is None:
            opened: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
            return opened
        self.count("open", where)
        new = bool(flags & os.O_CREAT) and not os.path.lexists(where)
        descriptor: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        self._opened(descriptor, where, new, bool(flags & os.O_TRUNC))
        return descriptor

    def _opened(self, descriptor: int, where: str, new: bool, emptied: bool) -> None:
        if new:
            self.changed("create", where, self.inode(descriptor, new=True))
        elif emptied and stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.changed("data", self.inode(descriptor), b"")

    def _on_descriptor(self, name: str) -> Callable[..., Any]:
        def function(descriptor: int, *args: Any) -> Any:
            where = self.where(descriptor)
            if where is None:
                return self.real[name](descriptor, *args)
            self.count(name, where)
            result = self.real[name](descriptor, *args)
            if name in WRITES:
                self.data(descriptor)
            return result

        return function

    def _fsync(self, descriptor: int) -> None:
        where = self.where(descriptor)
        if where is None:
            self.real["fsync"](descriptor)
            return
        self.count("fsync", where)  # without waiting: the disk itself is not tested
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        self.changed("fsync", where if is_folder else self.inode(descriptor))

    def _rename(self, name: str) -> Callable[..., None]:
        def function(
            source: Any,
            target: Any,
            *,
            src_dir_fd: int | None = None,
            dst_dir_fd: int | None = None,
            **options: Any,
        ) -> None:
            before, after = self.where(source, src_dir_fd), self.where(target, dst_dir_fd)
            fds = {"src_dir_fd": src_dir_fd, "dst_dir_fd": dst_dir_fd, **options}
            if before is None or after is None:
                self.real[name](source, target, **fds)
                return
            self.count(name, after)
            self.real[name](source, target, **fds)
            self.changed("link" if name == "link" else "rename", before, after)

        return function

    def _on_name(self, name: str) -> Callable[..., Any]:
        event = {"remove": "unlink", "unlink": "unlink", "mkdir": "mkdir", "rmdir": "rmdir"}

        def function(path: Any = ".", *args: Any, dir_fd: int | None = None) -> Any:
            where = self.where(path, dir_fd)
            fds = {} if dir_fd is None else {"dir_fd": dir_fd}
            if where is None:
                return self.real[name](path, *args, **fds)
            self.count(name, where)
            result = self.real[name](path, *args, **fds)
            if name in event:
                self.changed(event[name], where)
            return result

        return function

    def _open_object(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        where = self.where(file) if isinstance(file, (int, str, bytes, os.PathLike)) else None
        if where is None:
            return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        layer = self

        class Raw(io.FileIO):
            def readinto(self, buffer: Any) -> int | None:
                layer.count("read", str(layer.where(self.fileno()) or where))
                return super().readinto(buffer)

            def readall(self) -> bytes:
                layer.count("read", str(layer.where(self.fileno()) or where))
                return super().readall()

            def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
                layer.count("read", str(layer.where(self.fileno()) or where))
                return super().read(-1 if size is None else size)

            def write(self, data: Any) -> int:
                layer.count("write", str(layer.where(self.fileno()) or where))
                written = super().write(data)
                layer.data(self.fileno())
                return written

            def truncate(self, size: int | None = None) -> int:
                layer.count("truncate", str(layer.where(self.fileno()) or where))
                length = super().truncate(size)
                layer.data(self.fileno())
                return length

        if isinstance(file, int):
            raw = Raw(file, "".join(letter for letter in mode if letter in "rwax+"), closefd)
        else:
            self.count("open", where)
            new = not os.path.lexists(where)
            raw = Raw(file, "".join(letter for letter in mode if letter in "rwax+"), True, opener)
            if opener is None and not mode.startswith("r"):
                self._opened(raw.fileno(), where, new, mode.startswith("w"))
        if buffering == 0:
            return raw
        kind: Any = io.BufferedReader
        if "+" in mode:
            kind = io.BufferedRandom
        elif not mode.startswith("r"):
            kind = io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _library(self, *args: Any, **options: Any) -> Any:
        library = self.real["CDLL"](*args, **options)
        layer = self

        class Library:
            def __getattr__(self, name: str) -> Any:
                return getattr(library, name)

            def syncfs(self, descriptor: int) -> int:
                try:
                    layer.count("syncfs", str(layer.where(descriptor)))
                except OSError as error:
                    ctypes.set_errno(error.errno or 0)
                    return -1
                layer.changed("syncfs")
                return 0

        return Library()

    @contextmanager
    def installed(self) -> Iterator[Layer]:
        """Every call inside the block passes through the layer."""
        on_descriptor = ("read", "readv", "pread", "preadv", "write", "writev", "pwrite",
                         "pwritev", "ftruncate")  # fmt: skip
        renaming, on_name = ("rename", "replace", "link"), ("unlink", "remove", "mkdir", "rmdir",
                                                            "listdir", "scandir")  # fmt: skip
        names = [*on_descriptor, *renaming, *on_name, "open", "fsync"]
        if hasattr(os, "fdatasync"):
            names.append("fdatasync")
        self.real = {name: getattr(os, name) for name in names}
        self.real["CDLL"] = ctypes.CDLL
        new: dict[str, Any] = {name: self._on_descriptor(name) for name in on_descriptor}
        new |= {name: self._rename(name) for name in renaming}
        new |= {name: self._on_name(name) for name in on_name}
        new |= {"open": self._open, "fsync": self._fsync, "fdatasync": self._fsync}
        # `rmtree` may then use descriptors, as it does without the layer.
        kept = {"supports_dir_fd": set(os.supports_dir_fd), "supports_fd": set(os.supports_fd),
                "supports_follow_symlinks": set(os.supports_follow_symlinks)}  # fmt: skip
        for functions in kept.values():
            functions |= {new[n] for n, real in self.real.items() if n in new and real in functions}
        replaced: dict[str, Any] = {n: new[n] for n in names} | kept
        with mock.patch.multiple(os, **replaced), mock.patch.multiple(
            builtins, open=self._open_object
        ), mock.patch.multiple(io, open=self._open_object), mock.patch.multiple(
            _io, open=self._open_object
        ), mock.patch.multiple(ctypes, CDLL=self._library):  # fmt: skip
            yield self
