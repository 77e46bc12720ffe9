"""`record`: a frozen dataclass that is cheap to declare.

`dataclasses.dataclass(frozen=True)` compiles six functions for each class, about half a
millisecond. A small `fusecli fuse` declares fifty such classes before it begins. A record has
the same fields, and compares, hashes and prints alike, by three functions that all records share.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a class a dataclass whose fields are set once.

    mypy refuses later assignments; at run time nothing prevents them. Use
    `dataclass(frozen=True)` for classes that users of the library make.
    """
    made = dataclass(eq=False, repr=False)(cls)
    for name, function in (("__eq__", _equal), ("__hash__", _hash), ("__repr__", _repr)):
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
