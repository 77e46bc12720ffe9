"""Feature files: opened by their headers, read when asked, never changed.

A file becomes a `FeatureFile`, its tensors `StoredTensor`s. The ending of a file's name says its
format; `formats/table.py` lists them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import field
from io import BufferedIOBase, BufferedReader, FileIO, RawIOBase
from typing import TYPE_CHECKING, cast

from fusecli.errors import FeatureFileError, refuse_empty_name, shortened, shown_path
from fusecli.features.changes import settled_status, was_changed
from fusecli.features.formats.npy import npy_from_stream
from fusecli.features.formats.table import READABLE_ENDINGS, format_of
from fusecli.features.tensor import FileBytes, ManyTensors, StoredTensor
from fusecli.records import record

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LISTED = 12  # tensors that a message names


@record
class FeatureFile:
    """An open feature or weights file.

    Attributes:
        name: the path as it was given, "-" for stdin.
        tensors: by key; a file of one nameless tensor has the key "".
        metadata: what the file says about itself, in formats that can.
        size: in bytes.
        content: the bytes, for stdin only.
        handle: the open file the tensors are read from, closed by leaving the context.
        opened: what the system said of it when it was opened; None for stdin.
        mask_names: keys whose names say that they are masks, by what they say that they belong
            to, once `masks` has looked for them.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    size: int = 0
    content: bytes | None = None
    handle: BufferedReader | None = None
    opened: os.stat_result | None = None
    mask_names: list[dict[str, list[str]]] = field(default_factory=list, compare=False, repr=False)

    @property
    def where(self) -> str:
        """The file, for messages."""
        return shown_path(self.name)

    @property
    def listed(self) -> str:
        """The tensors there are, for messages."""
        if list(self.tensors) == [""]:
            return "it holds one tensor, without a name"
        shown = [
            f"{shortened(key, 40)} {list(tensor.shape)}"
            for key, tensor in ((key, self.tensors[key]) for key in sorted(self.tensors)[:_LISTED])
        ]
        left = len(self.tensors) - len(shown)
        return "there are " + ", ".join(shown) + (f", and {left} more" if left else "")

    def shape_of(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        tensors = self.tensors
        return tensors.shape_of(key) if isinstance(tensors, ManyTensors) else tensors[key].shape

    def refuse_changed(self) -> None:
        """Raises:
        FeatureFileError: the file was changed since it was opened.
        """
        if self.handle is None or self.opened is None:
            return
        if was_changed(self.opened, os.fstat(self.handle.fileno())):
            raise FeatureFileError(
                f"{self.where}: changed while it was read: run the command again once nobody "
                "writes to it"
            )

    def close(self) -> None:
        """Close the file; its tensors cannot be read any more."""
        if self.handle is not None:
            self.handle.close()

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def sha256_of(file: FeatureFile) -> str:
    """SHA-256 of an open file's bytes, as `sha256sum` prints it; of what was read for stdin.

    The open file is hashed, even if another file has taken its name since.
    """
    import hashlib  # loads OpenSSL, which most jobs do not need

    digest = hashlib.sha256(file.content or b"")
    if file.handle is not None:
        source, offset = FileBytes(file.handle), 0
        size = os.fstat(file.handle.fileno()).st_size
        while offset < size:
            try:
                block = source.read(offset, min(1 << 20, size - offset))
            except (EOFError, OSError) as error:
                reason = getattr(error, "strerror", None) or "it became shorter while it was read"
                raise FeatureFileError(f"{file.name}: cannot be read: {reason}") from None
            digest.update(block)
            offset += len(block)
    return digest.hexdigest()


def open_features(name: str) -> FeatureFile:
    """Open a feature file by its header; its numbers are not read.

    Args:
        name: a path, or "-" for .npy from stdin.

    Raises:
        FeatureFileError: missing, not a regular file, an unknown ending, or damaged.
        UsageError: the name is empty.
    """
    if name == "-":
        if sys.stdin is None:
            raise FeatureFileError("stdin: is closed, expected a .npy file on it")
        stream = cast(BufferedIOBase, sys.stdin.buffer)
        start = stream.peek(1) if isinstance(stream, BufferedReader) else b""
        try:
            tensor, data = npy_from_stream(stream, "-")
        except FeatureFileError:
            from fusecli.features.formats.content import content_by_start

            really = content_by_start(start, "FILE", ".npy")
            if really is None:
                raise
            raise FeatureFileError(f"stdin: is not a .npy file but {really}") from None
        return FeatureFile("-", {"": tensor}, {}, len(data), data)
    return _features_in(open_regular(name), name)


def features_of(descriptor: int, name: str) -> FeatureFile:
    """The same for a file that is open already.

    Args:
        descriptor: of a regular file; closed with the feature file, or where it is refused.
        name: its ending tells the format.

    Raises:
        FeatureFileError: an unknown ending, or damaged.
    """
    return _features_in(_reader(descriptor, name), name)


def _features_in(handle: BufferedReader, name: str) -> FeatureFile:
    try:
        return _open_format(handle, name)
    except BaseException:
        handle.close()
        raise


def _open_format(handle: BufferedReader, name: str) -> FeatureFile:
    opened = settled_status(handle.fileno())
    found = format_of(name)
    if found is None:
        ending = os.path.splitext(name)[1].lower().removesuffix(".")
        really = _other_content(handle, name)
        pickles = " (pickles are never loaded)" if ending in (".pkl", ".pickle", ".bin") else ""
        raise FeatureFileError(
            f"{name}: fusecli reads {', '.join(READABLE_ENDINGS)}, "
            f"found {ending or 'no ending'}{f': it is {really}' if really else pickles}"
        )
    try:
        contents = found.open(handle, name)
    except OSError as error:
        raise FeatureFileError(f"{name}: cannot be read: {error.strerror or error}") from None
    except FeatureFileError:
        really = _other_content(handle, name)
        if really is None:
            raise
        raise FeatureFileError(f"{name}: is not {found.called} but {really}") from None
    size = opened.st_size
    return FeatureFile(name, contents.tensors, contents.metadata, size, None, handle, opened)


def _other_content(handle: BufferedReader, name: str) -> str | None:
    """What a file is by its content, where that is not what its name says, and what to do."""
    from fusecli.features.formats.content import other_content  # for files that are refused

    try:
        return other_content(handle, name)
    except (FeatureFileError, OSError):  # a failing disk is what the first error was about
        return None


def open_regular(name: str) -> BufferedReader:
    """Open a regular file for reading; a pipe or device would block or never end.

    Raises:
        FeatureFileError: missing, unreadable, a directory, a pipe or a device.
        UsageError: the name is empty.
    """
    refuse_empty_name(name)
    try:
        # Opening a pipe that nobody writes to would wait for ever without O_NONBLOCK.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        windows = os.sep == "/" and "\\" in name
        hint = ": its path holds backslashes, write it with /" if windows else ""
        if name != name.strip() and os.path.exists(name.strip()):
            hint = ": its path has spaces around it, and without them there is one"
        raise FeatureFileError(f"{name}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENXIO:  # a socket
            raise FeatureFileError(_no_regular_file(name)) from None
        reason = getattr(error, "strerror", None) or str(error)
        raise FeatureFileError(f"{name}: cannot be opened: {reason}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise FeatureFileError(f"{name}: is a directory, expected a file")
        raise FeatureFileError(_no_regular_file(name))
    return _reader(descriptor, name)


def _reader(descriptor: int, name: str) -> BufferedReader:
    return BufferedReader(_Named(open(descriptor, "rb", buffering=0), name))


def _no_regular_file(name: str) -> str:
    return (
        f"{name}: is not a regular file but a pipe, a socket or a device: save what it gives in a "
        "file first"
    )


class _Named(RawIOBase):
    """An open file whose failed reads name it, whichever library asks for them.

    A zip archive that cannot be read, for one, would be called no archive by Python's reader.
    """

    def __init__(self, raw: FileIO, name: str) -> None:
        self._raw, self.name = raw, name

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        try:
            return self._raw.readinto(buffer)
        except OSError as error:
            why = error.strerror or error
            raise FeatureFileError(f"{self.name}: cannot be read: {why}") from None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._raw.seek(offset, whence)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()
