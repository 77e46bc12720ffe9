"""What the names, calls and storages in the pickles of PyTorch's files stand for.

Only descriptions are made here: nothing that a pickle names is imported or called.

Source: torch/serialization.py and torch/_utils.py for what the names mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from fusecli.records import record

# Storages by the name of their class, with the type of their numbers.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}
# Objects that may lie beside tensors. They are noted, never made.
_HARMLESS = (
    *("torch", "torch._utils", "torch._tensor", "torch.serialization", "torch.storage"),
    *("torch.nn.parameter", "collections", "numpy", "argparse", "pathlib", "datetime", "_codecs"),
)
_HARMLESS_INSIDE = ("torch.nested.", "torch._dynamo.", "torch.distributed.", "numpy.")
_HARMLESS_BUILTINS = ("set", "frozenset", "list", "dict", "tuple", "int", "float", "complex")


TensorKind = Literal["dense", "sparse", "quantized", "nested", "meta", "device", "wrapped", "numpy"]


class NotAllowedError(Exception):
    """The pickle asks for something that could run code; holds its name."""


@record
class StorageRef:
    """A storage of numbers in the file.

    Attributes:
        key: its name in the file.
        dtype: type of its numbers, by torch's name.
        count: of its numbers.
    """

    key: str
    dtype: str
    count: int


@record
class DescribedTensor:
    """A tensor, as a view of a storage.

    Attributes:
        storage: where its numbers are; None for one that is not plain numbers.
        dtype: type of its numbers, by torch's name.
        offset: of its first number, counted in numbers.
        shape, stride: of its axes, counted in numbers.
        negated: its numbers are the negatives of those stored.
        kind: what it is; "numpy" is a numpy array.
    """

    storage: StorageRef | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    negated: bool = False
    kind: TensorKind = "dense"


PlainKey = str | int | float | bytes | None


class Mapping:
    """A dict of the pickle.

    Attributes:
        items: by key; plain keys that are no text stand here as text.
        other_keys: those keys as they are, by their text.
    """

    __slots__ = ("items", "other_keys")

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.other_keys: dict[str, PlainKey] = {}

    def add(self, key: Any, value: Any) -> None:
        # Only plain keys: the hash of nested tuples can take for ever.
        if isinstance(key, PlainKey):
            self.items[str(key)] = value
            if not isinstance(key, str):
                self.other_keys[str(key)] = key
            elif self.other_keys:
                self.other_keys.pop(key, None)


@record
class OtherObject:
    """Something that is no tensor and is not looked into."""

    name: str


def named_object(module: Any, name: Any) -> OtherObject:
    """An object that a pickle imports by its name.

    Raises:
        NotAllowedError: it is none of those that may lie beside tensors.
        ValueError: a name is no text.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is not text")
    builtin = module in ("builtins", "__builtin__") and name in _HARMLESS_BUILTINS
    if not (builtin or module in _HARMLESS or module.startswith(_HARMLESS_INSIDE)):
        raise NotAllowedError(f"{module}.{name}")
    return OtherObject(f"{module}.{name}")


def called(name: str, a: tuple[Any, ...]) -> Any:
    """What a call would make.

    Args:
        name: of the function, with its module.
        a: its arguments.

    Raises:
        ValueError, IndexError, AttributeError, TypeError: the arguments are not those it takes.
    """
    last = name.rpartition(".")[2]
    if name == "collections.OrderedDict":
        made = Mapping()
        for key, value in a[0] if a else ():
            made.add(key, value)
        return made
    if last in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        options = a[6] if len(a) > 6 else None
        return _tensor(a[0], a[0].dtype, a[1], a[2], a[3], options)
    if last == "_rebuild_tensor_v3":
        options = a[7] if len(a) > 7 else None
        return _tensor(a[0], _dtype(a[6]), a[1], a[2], a[3], options)
    if last in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return a[0]
    if last == "_rebuild_from_type_v2":  # function, class, its arguments, further state
        return called(a[0].name, a[2])
    kinds: dict[str, TensorKind] = {
        "_rebuild_sparse_tensor": "sparse",
        "_rebuild_sparse_csr_tensor": "sparse",
        "_rebuild_qtensor": "quantized",
        "_rebuild_nested_tensor": "nested",
        "_rebuild_njt": "nested",
        "_rebuild_meta_tensor_no_storage": "meta",
        "_rebuild_device_tensor_from_numpy": "device",
        "_rebuild_device_tensor_from_cpu_tensor": "device",
        "_rebuild_wrapper_subclass": "wrapped",
    }
    if last in kinds and name.startswith("torch."):
        return DescribedTensor(None, _dtype_in(a), 0, _shape_in(last, a), (), False, kinds[last])
    if last == "_reconstruct" and name.startswith("numpy."):
        return DescribedTensor(None, "float32", 0, (), (), False, "numpy")
    return OtherObject(name)


def _tensor(
    storage: Any, dtype: str, offset: Any, shape: Any, stride: Any, options: Any
) -> DescribedTensor:
    if not isinstance(storage, StorageRef) or not is_size(offset):
        raise ValueError("a tensor without a storage")
    shape, stride = tuple(shape), tuple(stride)
    if len(shape) != len(stride) or not all(map(is_size, (*shape, *stride))):
        raise ValueError("a tensor without a shape")
    negated = isinstance(options, Mapping) and bool(options.items.get("neg"))
    return DescribedTensor(storage, dtype, offset, shape, stride, negated)


def _dtype(value: Any) -> str:
    if not isinstance(value, OtherObject):
        raise ValueError("a tensor without a type")
    return value.name.removeprefix("torch.")


def _dtype_in(arguments: tuple[Any, ...]) -> str:
    """The type of an unusual tensor, as far as its parts tell."""
    for value in arguments:
        if isinstance(value, StorageRef | DescribedTensor):
            return value.dtype
        if isinstance(value, OtherObject) and value.name.startswith("torch."):
            return _dtype(value)
        if isinstance(value, tuple) and value and isinstance(value[-2:][0], DescribedTensor):
            return str(value[-2:][0].dtype)
    return "unknown"


def _shape_in(name: str, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of an unusual tensor, as far as its parts tell."""
    place = {"_rebuild_meta_tensor_no_storage": 1, "_rebuild_qtensor": 2}.get(name)
    found = arguments[place] if place is not None and place < len(arguments) else ()
    if isinstance(found, tuple) and all(map(is_size, found)):
        return found
    return ()


def is_size(value: Any) -> bool:
    """Whether a value can be a size or a place."""
    return type(value) is int and 0 <= value < 1 << 63


def tensors_in(value: Any, deepest: int = 32) -> Iterator[tuple[tuple[str, ...], DescribedTensor]]:
    """All tensors in nested containers, each with the keys and indices that lead to it.

    A container that stands in several places is searched once.
    """
    seen: set[int] = set()

    def search(path: tuple[str, ...], value: Any) -> Iterator[Any]:
        if isinstance(value, DescribedTensor):
            yield path, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            if len(path) < deepest:
                named = value.items if isinstance(value, Mapping) else dict(enumerate(value))
                for key, item in named.items():
                    yield from search((*path, str(key)), item)

    return search((), value)


def python_path(value: Any, path: tuple[str, ...]) -> tuple[PlainKey, ...]:
    """The keys and indices, with their types, that lead to a tensor in what torch.load gives.

    Args:
        value: of the whole file.
        path: as `tensors_in` gives it, all texts.
    """
    found: list[PlainKey] = []
    for part in path:
        if isinstance(value, Mapping):
            found.append(value.other_keys.get(part, part))
            value = value.items[part]
        else:
            found.append(int(part))
            value = value[int(part)]
    return tuple(found)
