"""Feature files opened for one pair after the other: what is opened or read often is made cheap."""

from __future__ import annotations

import io
import os
import stat
import weakref
from collections import OrderedDict
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.changes import version_of
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.formats.npy import open_npy
from fusecli.features.tensor import InMemory, MemoryBytes, Span, StoredTensor

# np.save writes headers of this length for shapes of few digits: one read takes it all.
_HEADER = 128
_LARGEST_AT_ONCE = 64 << 20  # a larger file has its header looked at before it is read
_KEPT_FILES = 4  # of many tensors
_KEPT_HEADERS = 4096


class Opener:
    """Opens files; several threads may."""

    def __init__(self) -> None:
        self._headers: dict[bytes, StoredTensor] = {}
        self._shared = _OpenFiles()

    def open(self, file: str, key: str | None, stack: ExitStack, part: bool = False) -> FeatureFile:
        """A file, which stays open for as long as `stack` lasts.

        Args:
            file: the path.
            key: the tensor that will be asked for, where it is known.
            stack: closes the file.
            part: only rows of a stack will be read: open the file once for all of them.

        Raises:
            FeatureFileError: it is missing or damaged.
        """
        if part:
            return self._shared.open(file, stack)
        if file.endswith(".npy"):
            stored = self._whole_npy(file)
            if stored is not None:
                return FeatureFile(file, {"": stored})
        if key is not None and file.lower().endswith((".safetensors", ".npz")):
            return self._shared.open(file, stack)
        return stack.enter_context(open_features(file))

    def close(self) -> None:
        """Close the files that are kept open; they are opened again when they are needed."""
        self._shared.close()

    def _whole_npy(self, name: str) -> StoredTensor | None:
        """A .npy file read in one go; None where the usual way is to say what is there.

        Parsing its header takes numpy longer than reading it takes the system, and most of a
        run's headers are the same few.
        """
        if not hasattr(os, "readv"):
            return None
        try:
            descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(descriptor)
            size = status.st_size - _HEADER
            if not stat.S_ISREG(status.st_mode) or not 0 < size <= _LARGEST_AT_ONCE:
                return None
            header, numbers = bytearray(_HEADER), np.empty(size, np.uint8)
            if os.readv(descriptor, [header, numbers.data]) != status.st_size:
                return None
        except OSError:
            return None
        finally:
            os.close(descriptor)
        key = bytes(header)
        known = self._headers.get(key)
        if known is None:
            try:
                known = open_npy(io.BytesIO(key), status.st_size, name, MemoryBytes(key))
            except FeatureFileError:
                return None
            if not isinstance(known.source, Span) or known.source.offset != _HEADER:
                return None
            if len(self._headers) > _KEPT_HEADERS:
                self._headers.clear()
            self._headers[key] = known
        if known.nbytes != size:
            return None
        span = known.source
        assert isinstance(span, Span)
        array: NDArray[Any] = numbers.view(span.storage)
        if span.fortran_order:
            array = array.reshape(known.shape[::-1]).T
        else:
            array = array.reshape(known.shape)
        return StoredTensor(name, None, known.shape, known.dtype, size, InMemory(array))


def raw_row(stored: StoredTensor, axis: int, row: int) -> NDArray[Any]:
    """One slice of an axis as it is stored, without that axis; the rest is not read."""
    part = stored.raw_part(axis, row, row + 1)
    return part.reshape(stored.shape[:axis] + stored.shape[axis + 1 :])


@dataclass
class _OpenFile:
    """An open file of many tensors.

    Attributes:
        identity: its version when it was opened.
        file: open while it is kept or used.
        users: how many use it now.
        kept: it may be used again.
    """

    identity: tuple[int, ...]
    file: FeatureFile
    users: int = 0
    kept: bool = True


def _close_all(files: OrderedDict[str, _OpenFile]) -> None:
    for kept in files.values():
        kept.file.close()


class _OpenFiles:
    """The files of many tensors that were used last, each opened once for all threads.

    A file that is no longer kept closes when its last user is done with it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        # Whoever forgets `close` leaves no file open when the cache goes.
        weakref.finalize(self, _close_all, self._open)

    def open(self, name: str, stack: ExitStack) -> FeatureFile:
        """The file, which stays open for as long as `stack` lasts.

        Raises:
            FeatureFileError: it is missing or damaged.
        """
        identity: tuple[int, ...] = ()
        with suppress(OSError, ValueError):  # opening it says why
            identity = version_of(os.stat(name))
        with self._lock:
            known = self._open.get(name)
            if known is None or known.identity != identity or not identity:
                new = _OpenFile(identity, open_features(name))
                if known is not None:
                    self._drop(name)
                known = self._open[name] = new
            self._open.move_to_end(name)
            known.users += 1
            while len(self._open) > _KEPT_FILES:
                self._drop(next(iter(self._open)))
        stack.callback(self._release, known)
        return known.file

    def close(self) -> None:
        """Keep no file any longer."""
        with self._lock:
            for name in list(self._open):
                self._drop(name)

    def _drop(self, name: str) -> None:
        dropped = self._open.pop(name)
        dropped.kept = False
        self._close_unused(dropped)

    def _release(self, used: _OpenFile) -> None:
        with self._lock:
            used.users -= 1
            self._close_unused(used)

    def _close_unused(self, file: _OpenFile) -> None:
        if not file.kept and not file.users:
            file.file.close()
