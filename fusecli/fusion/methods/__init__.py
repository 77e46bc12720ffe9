"""The fusion methods, one module for each.

To add a method: write `fusecli/fusion/methods/NAME.py` with a `METHOD`, an instance of a
`fusecli.fusion.method.Method`, and add NAME to `MethodName` in `fusecli/fusion/literals.py`. A
method's module is imported when the method is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fusecli.errors import UsageError
from fusecli.fusion.literals import METHODS as METHODS
from fusecli.fusion.literals import MethodName

if TYPE_CHECKING:
    from fusecli.fusion.method import Method


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"unknown fusion method {name!r}: there is {', '.join(METHODS)}")
    method: Method = import_module(f"{__name__}.{name}").METHOD
    return method


def all_methods() -> list[Method]:
    """All methods, in the order of `METHODS`."""
    return [method_named(name) for name in METHODS]


def methods_with(field: str) -> list[MethodName]:
    """Names of the methods that read a field of `FusionSettings`."""
    return [method.name for method in all_methods() if field in method.fields]


def no_attention(wanted: str, method: MethodName) -> str:
    """The error for what only methods with attention have.

    Args:
        wanted: what it is.
        method: the one without attention.
    """
    having = [other.name for other in all_methods() if other.gives_weights]
    return (
        f"{wanted} needs a method with attention from text tokens to image tokens "
        f"({' or '.join(having)}); {method} has none"
    )
