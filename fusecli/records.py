"""Dataclasses that are cheap to declare.

`dataclasses.dataclass` compiles up to six functions for each class, a third of a millisecond each
time. A small `fusecli fuse` declares ninety such classes before it begins. The classes made here
have the same fields and behave alike, by functions that all of them share: `record` is a frozen
dataclass, `open_record` one whose fields can be set, and `keyword_dataclass` makes one of a
subclass of `Values`, which takes its fields by keyword and trusts its caller to give all of them.

A class of which many instances are made, such as the tensors of a batch, gets an `__init__` of its
own after all: a compiled one is four times as fast.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

_MADE_BY: Any = dataclass(init=False, eq=False, repr=False)
_MANY = 64  # instances, from which on a class is worth a function of its own


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass.

    Raises (later, by instances):
        FrozenInstanceError: a field is set a second time, or deleted.
        TypeError: a field without a value, two values for one field, or a value without a field.
    """
    return _share(cls, _SHARED | _FROZEN)


@dataclass_transform(field_specifiers=(field,))
def open_record(cls: type[T]) -> type[T]:
    """Make a class a dataclass whose fields can be set.

    Raises (later, by instances):
        TypeError: a field without a value, two values for one field, or a value without a field.
    """
    return _share(cls, _SHARED | _OPEN)


def _share(cls: type[T], functions: dict[str, Any]) -> type[T]:
    made: Any = _MADE_BY(cls)
    for name, function in functions.items():
        if name not in cls.__dict__:
            setattr(made, name, function)
    made._how_made = _HowMade(made, [field for field in fields(made) if field.init])
    return cls


class _HowMade:
    """What `_init` has to know of a class.

    Attributes:
        left: how many instances are made by `_init` before the class gets its own.
    """

    def __init__(self, cls: type[Any], found: list[Field[Any]]) -> None:
        self.cls, self.left = cls, _MANY
        self.names = tuple(field.name for field in found)
        self.wanted = frozenset(self.names)
        self.defaults = {f.name: f.default for f in found if f.default is not MISSING}
        self.factories = {
            f.name: f.default_factory for f in found if f.default_factory is not MISSING
        }


def _init(self: Any, *given: Any, **named: Any) -> None:
    how: _HowMade = self._how_made
    how.left -= 1
    if how.left <= 0 and how.cls.__init__ is _init:
        how.cls.__init__ = _own_init(how)
    values = dict(zip(how.names, given, strict=False))
    values.update(named)
    if len(values) != len(given) + len(named):
        raise TypeError(f"{type(self).__name__}: too many values, or two for one field")
    if len(values) != len(how.names):
        values = how.defaults | values
        for name, make in how.factories.items():
            if name not in values:
                values[name] = make()
    if values.keys() != how.wanted:
        odd = ", ".join(sorted(values.keys() ^ how.wanted))
        raise TypeError(f"{type(self).__name__}: fields without a value, or unknown: {odd}")
    self.__dict__.update(values)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _own_init(how: _HowMade) -> Any:
    """An `__init__` that does for one class what `_init` does for every class.

    Its text holds names of fields only; their defaults are looked up.
    """
    arguments, lines = ["self"], ["_kept = self.__dict__"]
    for name in how.names:
        value = name
        if name in how.factories:
            value = f"_make_{name}() if {name} is _left_out else {name}"
        elif name in how.defaults:
            value = f"_default_{name} if {name} is _left_out else {name}"
        arguments.append(f"{name}=_left_out" if value != name else name)
        lines.append(f"_kept[{name!r}] = {value}")
    if hasattr(how.cls, "__post_init__"):
        lines.append("self.__post_init__()")
    text = f"def __init__({', '.join(arguments)}):\n " + "\n ".join(lines)
    around: dict[str, Any] = {"_left_out": object()}
    around |= {f"_default_{name}": value for name, value in how.defaults.items()}
    around |= {f"_make_{name}": make for name, make in how.factories.items()}
    exec(text, around)  # the same that `dataclass` does
    return around["__init__"]


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


_SHARED = {"__init__": _init, "__repr__": _repr, "__eq__": _equal}
_OPEN = {"__hash__": None}
_FROZEN = {
    "__hash__": _hash,
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
    _MADE_BY(cls)
    return cls
