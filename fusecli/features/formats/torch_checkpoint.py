"""PyTorch's .pt and .pth, read with `weights_only=True`: tensors, never code."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from io import BufferedIOBase, BufferedReader
from typing import IO, Any, cast

from fusecli.errors import FeatureFileError
from fusecli.features.dtypes import READ_TYPES, storage_type
from fusecli.features.formats.base import FileContents, one_line
from fusecli.features.tensor import InMemory, StoredTensor, TensorSource, Unreadable

# Where trainers put the state dict inside a checkpoint.
_NESTS = ("state_dict", "model_state_dict", "model")


class TorchCheckpointFormat:
    """A tensor, or tensors by name."""

    endings = (".pt", ".pth")
    starts: tuple[bytes, ...] = ()

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """As `Format.open`."""
        return FileContents(_open_checkpoint(handle, file))


def _open_checkpoint(handle: BufferedIOBase, file: str) -> dict[str, StoredTensor]:
    """Load a tensor, or a dict of tensors, from a .pt file. Imports torch.

    Args:
        handle: the open file, at its start.
        file: its name for messages.

    Raises:
        FeatureFileError: not such a file, it needs code to load, or it holds no plain tensors.
    """
    import torch

    size = os.fstat(handle.fileno()).st_size
    if size == 0:
        raise FeatureFileError(f"{file}: is empty (0 bytes)")
    _check_archive(handle, file, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(cast(IO[bytes], handle), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" not in str(error):
            raise FeatureFileError(f"{file}: is not a readable .pt file: it is damaged") from None
        raise FeatureFileError(
            f"{file}: holds more than tensors, and loading that could run code, so fusecli does "
            "not: save the features themselves or a module's state_dict(), or use .safetensors"
        ) from None
    except Exception as error:  # torch raises nearly anything on damaged files
        raise FeatureFileError(f"{file}: is not a readable .pt file: {one_line(error)}") from None
    found = _tensors(loaded, torch)
    if not found:
        raise FeatureFileError(f"{file}: holds no tensors ({type(loaded).__name__})")
    return {key or "": _stored(tensor, key, file, size, torch) for key, tensor in found.items()}


def _check_archive(handle: BufferedIOBase, file: str, size: int) -> None:
    """Refuse what torch.save did not write, before torch unpacks it.

    Torch's archives are not compressed: one that is promises more than it costs to send.
    """
    start = handle.read(2)
    handle.seek(0)
    if start[:1] == b"\x80":  # a pickle, as torch wrote before version 1.6
        return
    if start != b"PK":
        raise FeatureFileError(f"{file}: is not a readable .pt file: torch.save did not write it")
    try:
        members = zipfile.ZipFile(cast(IO[bytes], handle)).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FeatureFileError(
            f"{file}: is not a readable .pt file but damaged or cut short: {one_line(error)}"
        ) from None
    if sum(member.file_size for member in members) > size:
        raise FeatureFileError(
            f"{file}: is not a readable .pt file: it is packed and would take more memory than "
            "its size, which torch.save never does"
        )
    handle.seek(0)


def _tensors(loaded: Any, torch: Any) -> dict[str | None, Any]:
    if isinstance(loaded, torch.Tensor):
        return {None: loaded}
    if not isinstance(loaded, dict):
        return {}
    for name in _NESTS:
        if isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    return {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }


def _stored(tensor: Any, key: str | None, file: str, size: int, torch: Any) -> StoredTensor:
    tensor = tensor.detach()
    name = str(tensor.dtype).removeprefix("torch.")
    nbytes = tensor.numel() * tensor.element_size()
    source: TensorSource
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        source = Unreadable(f"is a {_kind(tensor)} tensor, expected a dense one")
    elif nbytes > size:
        # A view with stride 0 promises any size at no cost in the file.
        source = Unreadable(
            f"promises {list(tensor.shape)}, {nbytes:,} bytes, in a file of {size:,}: "
            "save an expanded tensor with .contiguous()"
        )
    elif name not in READ_TYPES:
        source = Unreadable(f"holds {name}, which fusecli does not read")
    else:
        storage = storage_type(name)
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[storage.itemsize]
        flat = tensor.resolve_neg().contiguous().reshape(-1).view(bits)
        source = InMemory(flat.numpy().view(storage).reshape(tuple(tensor.shape)))
    return StoredTensor(file, key, tuple(tensor.shape), name, nbytes, source)


def _kind(tensor: Any) -> str:
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type != "cpu":
        return str(tensor.device.type)
    return str(tensor.layout).removeprefix("torch.")
