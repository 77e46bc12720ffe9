"""The pickles inside PyTorch's files, read as a description: nothing in them is ever called.

A pickle is a program. This module follows its steps and notes what they would build: containers,
numbers, texts, and tensors as places in a storage. Whatever else it asks for is either noted as
an object that fusecli does not look into, or refused. So neither code runs, nor does a small file
make much of time or memory: each step adds one small object, and the steps are counted.

Source: the docstrings of Python's `pickletools`. What the names in such files stand for is in
`torch_objects.py`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

from fusecli.features.formats.torch_objects import (
    STORAGES,
    Mapping,
    OtherObject,
    StorageRef,
    called,
    is_size,
    named_object,
)
from fusecli.records import record

_MARK = object()


@record
class PickleContents:
    """What a pickle describes.

    Attributes:
        value: `DescribedTensor`, `Mapping`, list, tuple, a plain value, or `OtherObject`.
        storages: all storages it names, by key.
        names: of all functions and classes it names, with their modules.
    """

    value: Any
    storages: dict[str, StorageRef]
    names: set[str]


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
    return PickleContents(machine.stack[-1], machine.storages, machine.names)


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}
        self.names: set[str] = set()

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
    _push_named(machine, *argument.split(" ", 1))


def _stack_global(machine: _Machine, argument: None) -> None:
    name, module = machine.pop(), machine.pop()
    _push_named(machine, module, name)


def _push_named(machine: _Machine, module: Any, name: Any) -> None:
    found = named_object(module, name)
    machine.names.add(found.name)
    machine.push(found)


def _persistent(machine: _Machine, argument: None) -> None:
    kind, storage, key, _, count, *view = machine.pop()
    if kind != "storage" or not isinstance(storage, OtherObject) or any(view):
        raise ValueError("an unknown storage")
    dtype = STORAGES[storage.name.rpartition(".")[2]]
    if not isinstance(key, str) or not is_size(count):
        raise ValueError("a damaged storage")
    storage = machine.storages[key] = StorageRef(key, dtype, count)
    machine.push(storage)


def _reduce(machine: _Machine, argument: None) -> None:
    arguments, function = machine.pop(), machine.pop()
    if not isinstance(function, OtherObject) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no function")
    machine.push(called(function.name, arguments))


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
