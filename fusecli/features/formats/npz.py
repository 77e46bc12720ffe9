"""NumPy's .npz: a zip archive with a .npy file for every array."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from io import BufferedReader
from threading import Lock
from typing import IO, Any, cast

from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.formats.base import (
    Buffers,
    Encode,
    FileContents,
    OutputContents,
    bytes_of,
    one_line,
)
from fusecli.features.formats.limits import VARIABLE, read_limit
from fusecli.features.formats.npy import npy_header, read_npy_header
from fusecli.features.literals import OutDtype
from fusecli.features.tensor import StoredTensor, Unreadable

_KEPT_HEADERS = 4096
# Features hardly shrink. What unpacks to more than both is read only where the user says so.
_LARGEST_UNPACKED = 512 << 20
_MOST_TIMES = 100


def names_in_archive(handle: BufferedReader) -> list[str]:
    """The names in a zip archive; none where it is none."""
    try:
        return zipfile.ZipFile(handle).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


class NpzFormat:
    """Arrays by name."""

    called = "a .npz archive"
    has_keys = True
    dtypes: tuple[OutDtype, ...] = ("float32", "float16")

    def recognises(self, handle: BufferedReader) -> bool:
        """As `Format.recognises`."""
        return any(name.endswith(".npy") for name in names_in_archive(handle))

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """As `Format.open`."""
        try:
            archive = zipfile.ZipFile(handle)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise FeatureFileError(
                f"{file}: is not a .npz archive, or damaged or cut short: {one_line(error)}"
            ) from None
        tensors: dict[str, StoredTensor] = {}
        for member in archive.infolist():
            if member.filename.endswith("/"):  # `is_dir` fails where there is no name
                continue
            key = member.filename.removesuffix(".npy")
            if key in tensors:
                raise FeatureFileError(f"{file}: holds two arrays called {key!r}")
            tensors[key] = _open_member(archive, member, file, key)
        if not tensors:
            raise FeatureFileError(f"{file}: the archive holds no arrays")
        return FileContents(tensors)

    def sink(self, file: IO[bytes], folder: str, contents: OutputContents) -> NpzSink:
        """As `WritableFormat.sink`."""
        return NpzSink(file, folder, contents)

    def encoder(self, dtype: OutDtype, metadata: dict[str, Any]) -> Encode:
        """As `WritableFormat.encoder`."""
        header = lru_cache(_KEPT_HEADERS)(lambda shape: npy_header(shape, dtype))

        def encode(tensors: Mapping[str, NDArray[Any]]) -> Buffers:
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for name, tensor in tensors.items():
                    with _begin_member(archive, name) as member:
                        member.write(header(tensor.shape))
                        member.write(bytes_of(tensor))
            return [file.getvalue()]

        return encode


FORMAT = NpzFormat()


class NpzSink:
    """Writes arrays side by side.

    An archive takes one member at a time, so the arrays after the first are held in temporary
    files until the first is complete.
    """

    def __init__(self, file: IO[bytes], folder: str, contents: OutputContents) -> None:
        self._file, self._folder, self._contents = file, folder, contents
        self._archive: zipfile.ZipFile | None = None
        self._sinks: list[IO[bytes]] = []

    def begin(self) -> None:
        self._archive = zipfile.ZipFile(self._file, "w")
        (first, shape), *others = self._contents.shapes.items()
        self._sinks = [_begin_member(self._archive, first)]
        self._sinks += [_beside(self._folder) for _ in others]
        self._sinks[0].write(npy_header(shape, self._contents.dtype))

    def write(self, index: int, data: memoryview) -> None:
        self._sinks[index].write(data)

    def finish(self) -> None:
        assert self._archive is not None, "begin comes first"
        self._sinks[0].close()
        shapes = list(self._contents.shapes.items())
        for (key, shape), held in zip(shapes[1:], self._sinks[1:], strict=True):
            held.seek(0)
            with _begin_member(self._archive, key) as member:
                member.write(npy_header(shape, self._contents.dtype))
                shutil.copyfileobj(held, member, 1 << 20)
        self._archive.close()

    def discard(self) -> None:
        for sink in self._sinks:
            with contextlib.suppress(OSError, ValueError):
                sink.close()
        if self._archive is not None:
            with contextlib.suppress(OSError, ValueError):
                self._archive.close()


def _beside(folder: str) -> IO[bytes]:
    """A temporary file without a name."""
    import tempfile

    return cast(IO[bytes], tempfile.TemporaryFile(dir=folder))


def _begin_member(archive: zipfile.ZipFile, key: str) -> IO[bytes]:
    # A fixed date: the same result is the same bytes.
    member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    return archive.open(member, "w", force_zip64=True)


def _open_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: str, key: str
) -> StoredTensor:
    where = f"{file}[{key}]"
    try:
        with archive.open(member) as stream:
            header = read_npy_header(stream, where)
            offset = stream.tell()
    except FeatureFileError:
        raise
    except Exception as error:  # zipfile raises what zlib, struct and the codecs raise
        raise FeatureFileError(f"{where}: cannot be unpacked: {one_line(error)}") from None
    # Deflate packs at most 1,032 to 1: a promise beyond that cannot be kept.
    possible = min(member.file_size - offset, member.compress_size * 1032)
    header.check_size(possible, where)
    limit = max(read_limit(_LARGEST_UNPACKED), _MOST_TIMES * member.compress_size)
    if header.nbytes > limit:
        problem = (
            f"unpacks from {member.compress_size:,} bytes to {header.nbytes:,}, more than {limit:,}"
            f": raise the bound with {VARIABLE}={-(-header.nbytes >> 20)}M if you know the file"
        )
        name = header.known or header.dtype.name
        return StoredTensor(file, key, header.shape, name, header.nbytes, Unreadable(problem))
    return header.stored(file, key, _Member(archive, member, where), offset)


class _Member:
    """One packed array, unpacked as it is read; damage is reported as such.

    Its stream is open from the first read to the end of the array: an archive may hold
    thousands of arrays, and it stays open as long as pairs are read from it.
    """

    sequential = True

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
        self._archive, self._member = archive, member
        self._where, self._lock = where, Lock()
        self._stream: zipfile.ZipExtFile | None = None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        with self._lock:
            try:
                if self._stream is None:
                    # typeshed calls it IO[bytes]; it is the ZipExtFile that has `readinto`.
                    self._stream = cast(zipfile.ZipExtFile, self._archive.open(self._member))
                self._stream.seek(offset)
                while done < len(buffer):
                    # In small pieces, so that a promise of gigabytes costs only what is
                    # really there.
                    count = self._stream.readinto(buffer[done : done + (1 << 20)])
                    if not count:
                        raise EOFError
                    done += count
                if offset + done == self._member.file_size:
                    self._stream.close()
                    self._stream = None
            except (EOFError, OSError):
                raise
            except Exception as error:  # zipfile raises what zlib, struct and the codecs raise
                raise FeatureFileError(
                    f"{self._where}: cannot be unpacked: {one_line(error)}"
                ) from None
