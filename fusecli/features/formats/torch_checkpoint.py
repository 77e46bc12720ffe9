"""PyTorch's .pt, .pth and .ckpt, read without torch: tensors, never code.

The pickle inside says which tensors there are and where their numbers lie in the file. Numbers are
read when they are asked for, and views are not copied before that.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shortened
from fusecli.features.dtypes import READ_TYPES, storage_type
from fusecli.features.formats.base import FileContents, one_line
from fusecli.features.formats.limits import read_limit
from fusecli.features.formats.npz import names_in_archive
from fusecli.features.formats.torch_objects import (
    DescribedTensor,
    Mapping,
    NotAllowedError,
    PlainKey,
    StorageRef,
    python_path,
    tensors_in,
)
from fusecli.features.formats.torch_pickle import PickleContents, read_pickle
from fusecli.features.tensor import (
    Buffer,
    FileBytes,
    Span,
    StoredTensor,
    TensorSource,
    Unreadable,
)
from fusecli.records import record

# Where trainers put the state dict inside a checkpoint; its keys are used without these names.
_NESTS = ("state_dict", "model_state_dict", "model")
_LARGEST_PICKLE = 64 << 20
_BYTES_A_STEP = 20  # of a pickle, for the most steps it may take
_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # begins files of torch before version 1.6
_OLD_START = b"\x80\x02\x8a\x0a" + _OLD_MAGIC.to_bytes(10, "little")  # the same as it is pickled
_REMEDIES = {
    "sparse": "save it with .to_dense()",
    "quantized": "save it with .dequantize()",
    "nested": "save it with torch.nested.to_padded_tensor and a mask beside it",
    "meta": "it has no numbers",
}


class TorchCheckpointFormat:
    """A tensor, or tensors by name."""

    called = "a readable .pt file"

    def recognises(self, handle: BufferedReader) -> bool:
        """As `Format.recognises`."""
        start = handle.read(len(_OLD_START))
        return start == _OLD_START or any(
            name.endswith("data.pkl") for name in names_in_archive(handle)
        )

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """As `Format.open`."""
        size = os.fstat(handle.fileno()).st_size
        start = handle.peek(2)[:2]
        if not size:
            raise FeatureFileError(f"{file}: is empty (0 bytes)")
        if start[:1] != b"\x80" and start != b"PK":
            raise _unreadable(file, "torch.save did not write it")
        try:
            source = FileBytes(handle)
            contents, storages = _read(handle, source, size, file)
            value = contents.value
            tensors = {
                key: _stored(tensor, key, storages, source, size, file)
                for key, (_, tensor) in _by_key(value).items()
            }
        except NotAllowedError as error:
            raise FeatureFileError(
                f"{file}: holds {shortened(str(error))}, more than tensors, and loading that could "
                "run code, so fusecli does not: save the features themselves or a module's "
                "state_dict(), or use .safetensors"
            ) from None
        except OverflowError:
            raise _unreadable(
                file,
                "its description of what it holds is too long; raise the bound with "
                "FUSECLI_READ_LIMIT=1G if you know the file",
            ) from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError):
            raise _unreadable(file, "it is damaged") from None
        if not tensors:
            raise FeatureFileError(f"{file}: holds no tensors ({_what(value)}){_no_tensors(value)}")
        return FileContents(tensors)


FORMAT = TorchCheckpointFormat()


def python_paths(
    handle: BufferedReader, file: str
) -> tuple[dict[str, tuple[PlainKey, ...]], set[str]]:
    """How Python reaches each tensor in what torch.load gives, by its key, and what else there is.

    The second are the names of all functions and classes that the file names. Only advice needs
    this, of files that were opened before.

    Args:
        handle: the file, which `TorchCheckpointFormat.open` took.
        file: its name.
    """
    contents, _ = _read(handle, FileBytes(handle), os.fstat(handle.fileno()).st_size, file)
    found = _by_key(contents.value)
    paths = {key: python_path(contents.value, path) for key, (path, _) in found.items()}
    return paths, contents.names


@record
class _Storages:
    """Where the numbers of each storage lie in the file.

    Attributes:
        places: first byte and number of bytes, by the storage's key.
        swapped: they were written by a big-endian machine.
    """

    places: dict[str, tuple[int, int]]
    swapped: bool = False


def _unreadable(file: str, why: str) -> FeatureFileError:
    return FeatureFileError(f"{file}: is not a readable .pt file: {why}")


def _most_steps() -> int:
    return read_limit(_LARGEST_PICKLE) // _BYTES_A_STEP


# ------------------------------------------------------------------------ files of torch 1.6 on


def _read(
    handle: BufferedReader, source: FileBytes, size: int, file: str
) -> tuple[PickleContents, _Storages]:
    """What the file describes, and where its storages are."""
    if source.read(0, 2) == b"PK":
        return _read_archive(handle, source, size, file)
    return _read_old(source, size, file)


def _read_archive(
    handle: BufferedReader, source: FileBytes, size: int, file: str
) -> tuple[PickleContents, _Storages]:
    try:
        archive = zipfile.ZipFile(handle)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unreadable(file, f"damaged or cut short: {one_line(error)}") from None
    members = {member.filename: member for member in archive.infolist()}
    if any(name.endswith("/constants.pkl") for name in members):
        raise _unreadable(file, "it holds a TorchScript program: save its state_dict() instead")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise _unreadable(file, "it is packed, which torch.save never does")
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise _unreadable(file, "a zip archive that torch.save did not write")
    (root,) = roots

    def read(name: str, longest: int) -> bytes:
        start, length = _place(source, members[root + name], size)
        if length > longest:
            raise OverflowError
        return source.read(start, length)

    pickled = read("data.pkl", read_limit(_LARGEST_PICKLE))
    swapped = root + "byteorder" in members and read("byteorder", 16) == b"big"
    places = {
        name.removeprefix(f"{root}data/"): _place(source, member, size)
        for name, member in members.items()
        if name.startswith(f"{root}data/")
    }
    return read_pickle(io.BytesIO(pickled), _most_steps()), _Storages(places, swapped)


def _place(source: FileBytes, member: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """First byte and number of bytes of an archive's member, which is not packed."""
    header = source.read(member.header_offset, 30)
    if header[:4] != b"PK\x03\x04" or member.flag_bits & 1:
        raise ValueError("no member where the archive says it is")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + 30 + names
    if start + member.file_size > size:
        raise ValueError("a member goes on behind the end of the file")
    return start, member.file_size


# -------------------------------------------------------------------- files of older versions


def _read_old(source: FileBytes, size: int, file: str) -> tuple[PickleContents, _Storages]:
    """Five pickles (a magic number, a version, the machine, the value, the storages' keys), then
    each storage: eight bytes of length, and its numbers."""
    data = io.BytesIO(source.read(0, min(size, read_limit(_LARGEST_PICKLE))))
    most = _most_steps()
    if read_pickle(data, most).value != _OLD_MAGIC:
        raise _unreadable(file, "a pickle that torch.save did not write")
    read_pickle(data, most)
    read_pickle(data, most)
    contents = read_pickle(data, most)
    places: dict[str, tuple[int, int]] = {}
    keys = read_pickle(data, most).value
    start = data.tell()
    for key in keys:
        storage = contents.storages[key]
        length = storage.count * _itemsize(storage.dtype)
        if int.from_bytes(source.read(start, 8), "little") != storage.count:
            raise ValueError("a storage of another length than its description says")
        if start + 8 + length > size:
            raise _unreadable(file, "damaged or cut short")
        places[key] = start + 8, length
        start += 8 + length
    return contents, _Storages(places)


# --------------------------------------------------------------------------------- tensors


def _by_key(value: Any) -> dict[str, tuple[tuple[str, ...], DescribedTensor]]:
    """All tensors by the keys that lead to them, joined by dots; "" for a bare tensor.

    Each stands with the whole path to it, which may have one more name in front.
    """
    found = dict(tensors_in(value))

    def inside(path: tuple[str, ...], name: str | None) -> bool:
        return len(path) > 1 and path[0] == name

    top = isinstance(value, Mapping)
    nests = [name for name in _NESTS if top and any(inside(path, name) for path in found)]
    nest = nests[0] if nests else None
    named = {".".join(path[1:]): (path, found[path]) for path in found if inside(path, nest)}
    for path, tensor in found.items():
        if not inside(path, nest):
            named.setdefault(".".join(path), (path, tensor))
    return named


def _stored(
    tensor: DescribedTensor,
    key: str,
    storages: _Storages,
    source: FileBytes,
    size: int,
    file: str,
) -> StoredTensor:
    numbers = _numbers(tensor, storages, source, size)
    nbytes = math.prod(tensor.shape) * _itemsize(tensor.dtype)
    return StoredTensor(file, key or None, tensor.shape, tensor.dtype, nbytes, numbers)


def _numbers(
    tensor: DescribedTensor, storages: _Storages, source: FileBytes, size: int
) -> TensorSource:
    storage = tensor.storage
    if storage is None:
        if tensor.kind == "numpy":
            return Unreadable(
                "is a numpy array inside a PyTorch file, where fusecli reads tensors: save it with "
                "torch.from_numpy, or with numpy.savez"
            )
        remedy = _REMEDIES.get(tensor.kind, "save it as one")
        return Unreadable(f"is a {tensor.kind} tensor, expected a dense one: {remedy}")
    nbytes = math.prod(tensor.shape) * _itemsize(tensor.dtype)
    if nbytes > size:
        # A view with stride 0 promises any size at no cost in the file.
        return Unreadable(
            f"promises {list(tensor.shape)}, {nbytes:,} bytes, in a file of {size:,}: "
            "save an expanded tensor with .contiguous()"
        )
    if tensor.dtype not in READ_TYPES:
        complex_ = ": save its real and imaginary parts" if "complex" in tensor.dtype else ""
        return Unreadable(f"holds {tensor.dtype}, which fusecli does not read{complex_}")
    start, length = _checked_place(storage, storages)
    dtype = storage_type(tensor.dtype)
    itemsize = dtype.itemsize
    extent = _extent(tensor)
    if (tensor.offset + extent) * itemsize > length:
        raise ValueError("a tensor goes on behind the end of its storage")
    if storages.swapped:
        dtype = dtype.newbyteorder(">")
    offset = start + tensor.offset * itemsize
    if not tensor.negated and _is_contiguous(tensor):
        return Span(source, offset, dtype)
    if tensor.negated and not tensor.dtype.startswith(("float64", "float32", "float16")):
        return Unreadable("is a negated view: save it with .clone()")
    return StridedSpan(Span(source, offset, dtype), extent, tensor.stride, tensor.negated)


def _checked_place(storage: StorageRef, storages: _Storages) -> tuple[int, int]:
    start, length = storages.places[storage.key]
    if storage.count * _itemsize(storage.dtype) > length:
        raise ValueError("a storage is cut short")
    return start, length


def _extent(tensor: DescribedTensor) -> int:
    """Numbers of the storage from the tensor's first to its last."""
    if 0 in tensor.shape:
        return 0
    pairs = zip(tensor.shape, tensor.stride, strict=True)
    return 1 + sum((size - 1) * step for size, step in pairs)


def _is_contiguous(tensor: DescribedTensor) -> bool:
    expected = 1
    for size, step in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and step != expected:
            return 0 in tensor.shape
        expected *= size
    return True


@record
class StridedSpan:
    """Numbers of a view: what lies between its first and its last is read, and looked at.

    Attributes:
        numbers: where they lie.
        extent: numbers from the first to the last.
        stride: of each axis, in numbers.
        negated: they are the negatives of those stored.
    """

    numbers: Span
    extent: int
    stride: tuple[int, ...]
    negated: bool

    problem: None = None
    c_ordered = False

    def raw(self, shape: tuple[int, ...]) -> NDArray[Any]:
        return self._view(self.numbers.raw((self.extent,)), shape)

    def raw_part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        cut = (*shape[:axis], stop - start, *shape[axis + 1 :])
        if 0 in cut:
            return np.empty(cut, self.numbers.storage)
        first = start * self.stride[axis]
        extent = 1 + sum((size - 1) * step for size, step in zip(cut, self.stride, strict=True))
        part = self.numbers.raw_part((self.extent,), 0, first, first + extent, buffer)
        return self._view(part, cut)

    def _view(self, flat: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        strides = tuple(step * flat.itemsize for step in self.stride)
        view = np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)
        return -view if self.negated else view


def _itemsize(dtype: str) -> int:
    sizes: dict[str, int] = {"complex64": 8, "complex128": 16, "complex32": 4, "qint32": 4}
    known: Callable[[str], int] = lambda name: storage_type(name).itemsize  # noqa: E731
    return known(dtype) if dtype in READ_TYPES else sizes.get(dtype, 1)


def _no_tensors(value: Any) -> str:
    """What to do about a file of Python's lists of numbers, as the end of a sentence."""
    values = value.items.values() if isinstance(value, Mapping) else value
    if not isinstance(values, list | tuple | type({}.values())):
        return ""
    if any(isinstance(each, list) and each for each in values):
        return ": its lists of numbers are no tensors: save each as torch.tensor(LIST)"
    return ""


def _what(value: Any) -> str:
    names = {Mapping: "a dict", list: "a list", tuple: "a tuple", type(None): "None"}
    return names.get(type(value), "another object")
