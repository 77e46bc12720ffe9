"""Dataclasses that are cheap to declare.

`dataclasses.dataclass(frozen=True)` compiles six functions for each class, about half a
millisecond. A small `fusecli fuse` declares fifty such classes before it begins. A `record` has
the same fields and behaves alike, by functions that all records share. A subclass of `Values` made
by `keyword_dataclass` does without an `__init__` of its own too, and is changeable.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass.

    Raises (later, by instances):
        FrozenInstanceError: a field is set a second time, or deleted.
    """
    made = dataclass(eq=False, repr=False)(cls)
    for name, function in _SHARED.items():
        if name not in cls.__dict__:
            setattr(made, name, function)
    return made


def _values(item: Any) -> tuple[Any, ...]:
    return tuple(getattr(item, field.name) for field in fields(item) if field.compare)


def _equal(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _set_once(self: Any, name: str, value: Any) -> None:
    if name in self.__dict__:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


_SHARED = {
    "__eq__": _equal,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _set_once,
    "__delattr__": _delete,
}


class Values:
    """Named values, given by keyword."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@dataclass_transform(kw_only_default=True)
def keyword_dataclass(cls: type[T]) -> type[T]:
    """Make a subclass of `Values` a dataclass."""
    return dataclass(init=False, eq=False, repr=False)(cls)
