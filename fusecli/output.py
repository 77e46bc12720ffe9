"""Results on disk: whole or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk, and
renamed. Formats are told by the ending. Rows arrive in chunks, so that a stack larger than
memory can be written.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import sys
import zipfile
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fusecli.errors import OutputError, UsageError
from fusecli.features.dtypes import from_float32, storage_type

ENDINGS = (".npy", ".npz", ".safetensors")
OUT_DTYPES = ("float32", "float16", "bfloat16")
FUSED_KEY = "fused"
_SAFETENSORS_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class StagedFile:
    """A file that appears under its name only when `publish` is called.

    Used as a context manager: leaving it without `publish` removes every trace. The file is
    made by `begin`, inside the context, so that a signal at any moment finds it cleaned up.

    Args:
        path: the name it will have.
        shown: what errors call it, where that is not its name.
    """

    def __init__(self, path: str, shown: str | None = None) -> None:
        # A link keeps pointing where it did: its target is what is replaced.
        self.path = os.path.realpath(path)
        self._shown = shown or path
        # A name of its own for every run: two on one output do not meet.
        part = f".fusecli-{os.urandom(8).hex()}.part"
        self.staged = os.path.join(os.path.dirname(self.path), part)
        self._handle: IO[bytes] | None = None

    def begin(self) -> StagedFile:
        """Make the file, under its temporary name.

        Raises:
            OutputError: the folder does not allow it.
        """
        try:
            descriptor = os.open(self.staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise _failed(self._shown, error) from None
        self._handle = os.fdopen(descriptor, "w+b")
        return self

    @property
    def handle(self) -> IO[bytes]:
        """The open file."""
        assert self._handle is not None, "begin comes first"
        return self._handle

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OutputError: the disk is full, or a limit is reached.
        """
        try:
            self.handle.write(data)
        except OSError as error:
            raise _failed(self._shown, error) from None

    def flush(self) -> None:
        """Bring everything to the disk.

        Raises:
            OutputError: the disk is full, or failed.
        """
        try:
            self.handle.flush()
            os.fsync(self.handle.fileno())
        except OSError as error:
            raise _failed(self._shown, error) from None

    def publish(self) -> None:
        """Give the finished file its name.

        Raises:
            OutputError: the folder or the disk does not allow it.
        """
        self.flush()
        try:
            self.handle.close()
            os.replace(self.staged, self.path)
            _sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise _failed(self._shown, error) from None

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.close()
        with contextlib.suppress(OSError):
            os.unlink(self.staged)  # after `publish` there is none


class FeatureWriter:
    """Writes one tensor, chunk by chunk, in the format its file's ending asks for.

    Args:
        path: where it goes; "-" is .npy on stdout.
        shape: of the whole tensor.
        dtype: "float32", "float16" or "bfloat16".
        metadata: plain data for the file's own metadata (safetensors only).
    """

    def __init__(
        self, path: str, shape: tuple[int, ...], dtype: str, metadata: dict[str, Any]
    ) -> None:
        self._shape, self._dtype, self._path = shape, dtype, path
        self._nbytes = math.prod(shape) * storage_type(dtype).itemsize
        self._spooled = path == "-"
        self._metadata = metadata
        self.staged = StagedFile(path)
        if self._spooled:
            self.staged = StagedFile(_spool(), "stdout (held in $TMPDIR until it is whole)")
        self._archive: zipfile.ZipFile | None = None
        self._sink: Any = self.staged

    def begin(self) -> FeatureWriter:
        """Make the file and write the format's header.

        Raises:
            OutputError: the folder or the disk does not allow it.
        """
        self.staged.begin()
        ending = os.path.splitext(self._path)[1].lower()
        if ending == ".safetensors":
            entry = _safetensors_header(self._shape, self._dtype, self._nbytes, self._metadata)
            self._write(entry)
            return self
        if ending == ".npz":
            self._archive = zipfile.ZipFile(self.staged.handle, "w")
            # A fixed date: the same result is the same bytes.
            member = zipfile.ZipInfo(f"{FUSED_KEY}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            self._sink = self._archive.open(member, "w", force_zip64=True)
        self._write(_npy_header(self._shape, self._dtype))
        return self

    @property
    def key(self) -> str | None:
        """Name of the tensor in the file; .npy has none."""
        return FUSED_KEY if self._path.lower().endswith((".safetensors", ".npz")) else None

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, without the file's header."""
        return self._nbytes

    def append(self, rows: NDArray[np.float32]) -> None:
        """Write the next rows, rounded to the output type.

        Raises:
            OutputError: the disk is full, or a number does not fit the type.
        """
        stored = np.ascontiguousarray(from_float32(rows, self._dtype))
        if self._dtype == "float16" and not np.isfinite(stored).all() and np.isfinite(rows).all():
            raise OutputError(
                f"{self._path}: fused values reach {np.abs(rows).max():.3g} and float16 ends at "
                "65504: say --out-dtype float32"
            )
        self._write(stored.reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Close the format; the file is complete under its temporary name."""
        try:
            if self._archive is not None:
                self._sink.close()
                self._archive.close()
        except OSError as error:
            raise _failed(self._path, error) from None
        self.staged.flush()

    def publish(self) -> None:
        """Give the file its name, or copy it to stdout.

        Raises:
            OutputError: the folder, the disk or the reader of stdout does not take it.
        """
        if not self._spooled:
            self.staged.publish()
            return
        self.staged.handle.seek(0)
        shutil.copyfileobj(self.staged.handle, sys.stdout.buffer)
        sys.stdout.buffer.flush()

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._sink.write(data)
        except OSError as error:
            raise _failed(self._path, error) from None

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._archive is not None:
            with contextlib.suppress(OSError, ValueError):
                self._sink.close()
            with contextlib.suppress(OSError, ValueError):
                self._archive.close()
        self.staged.__exit__(*error)


def check_target(path: str, force: bool, inputs: list[str], endings: tuple[str, ...]) -> None:
    """Refuse an output that could not or should not be written, before any work.

    Args:
        path: where it would go; "-" passes.
        force: an existing file may be replaced.
        inputs: the files the job reads, which are never replaced.
        endings: those that are possible.

    Raises:
        UsageError: the ending is not one of them.
        OutputError: no such folder, a file that exists, one of the inputs, no regular file.
    """
    if path == "-":
        return
    ending = os.path.splitext(path)[1].lower()
    if ending not in endings:
        raise UsageError(
            f"{path}: an output ends in {' or '.join(endings)}, found {ending or 'no ending'}"
        )
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: its folder {folder} does not exist: make it first")
    if not os.path.lexists(path):
        return
    for name in inputs:
        if (
            name != "-"
            and os.path.exists(name)
            and os.path.exists(path)
            and os.path.samefile(name, path)
        ):
            raise OutputError(
                f"{path}: is also an input, and inputs are never changed: say another -o"
            )
    if os.path.exists(path) and not os.path.isfile(path):
        what = "directory" if os.path.isdir(path) else "device or pipe"
        raise OutputError(f"{path}: is a {what}, expected a file (use -o - for stdout)")
    if not force:
        raise OutputError(f"{path}: exists already: say --force to replace it")


def _spool() -> str:
    """Where a result for stdout is held until it is whole."""
    import tempfile

    return os.path.join(tempfile.gettempdir(), "fusecli-stdout")


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = {"descr": storage_type(dtype).str, "fortran_order": False, "shape": shape}
    sink = io.BytesIO()
    npy_format.write_array_header_1_0(sink, header)
    return sink.getvalue()


def _safetensors_header(
    shape: tuple[int, ...], dtype: str, nbytes: int, metadata: dict[str, Any]
) -> bytes:
    """Eight bytes of length and JSON, padded with spaces to a multiple of 8.

    Written here because the library's writer wants the whole tensor in memory.
    Source: the format section of the safetensors README.
    """
    entry = {"dtype": _SAFETENSORS_CODES[dtype], "shape": shape, "data_offsets": [0, nbytes]}
    text = json.dumps(
        {"__metadata__": {"fusecli": json.dumps(metadata)}, FUSED_KEY: entry}
    ).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _failed(path: str, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")


def _sync_folder(folder: str) -> None:
    # Without it a power cut can undo the rename, though not the file's contents.
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
