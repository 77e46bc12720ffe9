"""The pickles inside PyTorch's files, read as a description: nothing in them is ever called.

A pickle is a program. This module follows its steps and notes what they would build: containers,
numbers, texts, and tensors as places in a storage. Whatever else it asks for is either noted as
an object that fusecli does not look into, or refused. So neither code runs, nor does a small file
make much of time or memory: each step adds one small object, and the steps are counted.

Source: the docstrings of Python's `pickletools`; torch/serialization.py and torch/_utils.py for
what the names in such files mean.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import IO, Any

from fusecli.records import record

# Storages by the name of their class, with the type of their numbers.
_STORAGES = {
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
_MARK = object()


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
        kind: "dense", or what it is instead: "sparse", "quantized", "nested", "meta", or "numpy"
            for a numpy array.
    """

    storage: StorageRef | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    negated: bool = False
    kind: str = "dense"


class Mapping:
    """A dict of the pickle; its keys are texts, other plain keys as text."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}

    def add(self, key: Any, value: Any) -> None:
        # Only plain keys: the hash of nested tuples can take for ever.
        if isinstance(key, str | int | float | bytes | None):
            self.items[str(key)] = value


@record
class OtherObject:
    """Something that is no tensor and is not looked into."""

    name: str


@record
class PickleContents:
    """What a pickle describes.

    Attributes:
        value: `DescribedTensor`, `Mapping`, list, tuple, a plain value, or `OtherObject`.
        storages: all storages it names, by key.
    """

    value: Any
    storages: dict[str, StorageRef]


def read_pickle(data: IO[bytes], most_steps: int) -> PickleContents:
    """Follow a pickle to its end, and stop behind it.

    Args:
        data: at its start.
        most_steps: after so many steps it is given up.

    Raises:
        NotAllowedError: it asks for something that could run code.
        ValueError, IndexError, KeyError, TypeError: it is damaged.
        OverflowError: it takes more steps than allowed.
    """
    machine = _Machine()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number >= most_steps:
            raise OverflowError
        step = _STEPS.get(opcode.name)
        if step is None:
            raise ValueError(f"unknown step {opcode.name}")
        step(machine, argument)
    return PickleContents(machine.stack[-1], machine.storages)


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


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is expected")
        return value

    def pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values


def _global(machine: _Machine, argument: str) -> None:
    machine.push(_named(*argument.split(" ", 1)))


def _stack_global(machine: _Machine, argument: None) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(_named(module, name))


def _named(module: Any, name: Any) -> OtherObject:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is not text")
    builtin = module in ("builtins", "__builtin__") and name in _HARMLESS_BUILTINS
    if not (builtin or module in _HARMLESS or module.startswith(_HARMLESS_INSIDE)):
        raise NotAllowedError(f"{module}.{name}")
    return OtherObject(f"{module}.{name}")


def _persistent(machine: _Machine, argument: None) -> None:
    kind, storage, key, _, count, *view = machine.pop()
    if kind != "storage" or not isinstance(storage, OtherObject) or any(view):
        raise ValueError("an unknown storage")
    dtype = _STORAGES[storage.name.rpartition(".")[2]]
    if not isinstance(key, str) or not _is_size(count):
        raise ValueError("a damaged storage")
    storage = machine.storages[key] = StorageRef(key, dtype, count)
    machine.push(storage)


def _reduce(machine: _Machine, argument: None) -> None:
    arguments, function = machine.pop(), machine.pop()
    if not isinstance(function, OtherObject) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no function")
    machine.push(_called(function.name, arguments))


def _called(name: str, a: tuple[Any, ...]) -> Any:
    """What a call would make."""
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
        return _called(a[0].name, a[2])
    kinds = {
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
    if not isinstance(storage, StorageRef) or not _is_size(offset):
        raise ValueError("a tensor without a storage")
    shape, stride = tuple(shape), tuple(stride)
    if len(shape) != len(stride) or not all(map(_is_size, (*shape, *stride))):
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
    if isinstance(found, tuple) and all(map(_is_size, found)):
        return found
    return ()


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _put(machine: _Machine, argument: int) -> None:
    machine.memory[argument] = machine.stack[-1]


def _memoize(machine: _Machine, argument: None) -> None:
    machine.memory[len(machine.memory)] = machine.stack[-1]


def _get(machine: _Machine, argument: int) -> None:
    machine.push(machine.memory[argument])


def _pop(machine: _Machine, argument: None) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, argument: None) -> None:
    machine.pop_to_mark()


def _tuple(count: int) -> Callable[[_Machine, None], None]:
    def step(machine: _Machine, argument: None) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return step


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(values)


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Mapping):
        for key, value in zip(values[::2], values[1::2], strict=True):
            target.add(key, value)


def _set_item(machine: _Machine, argument: None) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _dict(machine: _Machine, argument: None) -> None:
    values = machine.pop_to_mark()
    machine.push(Mapping())
    _set_items(machine, values)


def _new_object(machine: _Machine, argument: None) -> None:
    _, made = machine.pop(), machine.pop()
    machine.push(made)


def _new_object_with_names(machine: _Machine, argument: None) -> None:
    machine.pop()
    _new_object(machine, argument)


def _value(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


# What each step of a pickle does; `pickletools` gives it its argument.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _value),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"), _value),
    **dict.fromkeys(("BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"), _value),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _value),
    "NONE": lambda machine, argument: machine.push(None),
    "NEWTRUE": lambda machine, argument: machine.push(True),
    "NEWFALSE": lambda machine, argument: machine.push(False),
    "MARK": lambda machine, argument: machine.push(_MARK),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, argument: machine.push(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "EMPTY_DICT": lambda machine, argument: machine.push(Mapping()),
    "EMPTY_LIST": lambda machine, argument: machine.push([]),
    "EMPTY_SET": lambda machine, argument: machine.push([]),
    "EMPTY_TUPLE": lambda machine, argument: machine.push(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.pop_to_mark())),
    "LIST": lambda machine, argument: machine.push(machine.pop_to_mark()),
    "FROZENSET": lambda machine, argument: machine.push(machine.pop_to_mark()),
    "DICT": _dict,
    "APPEND": lambda machine, argument: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, argument: _append(machine, machine.pop_to_mark()),
    "ADDITEMS": lambda machine, argument: _append(machine, machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, argument: _set_items(machine, machine.pop_to_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_with_names,
    "BUILD": _pop,  # the state of an object, which is not looked into
}
