"""How options are declared: a dataclass is a group of options, and commands share groups.

    @option_group
    class Computing(OptionGroup):
        heading: ClassVar[str] = "Computing"
        engine: Annotated[Engine, typer.Option(help="What computes.")] = "auto"

    @command
    def fuse(computing: Computing) -> None: ...

`fusecli fuse` then has `--engine`, and its help lists it under "Computing".
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from fusecli.records import Values
from fusecli.records import keyword_dataclass as option_group

__all__ = ["Choices", "OptionGroup", "option_group", "parse_bytes", "spread"]


class OptionGroup(Values):
    """Base of all groups of options.

    Attributes:
        heading: what the help prints above them.
    """

    heading: ClassVar[str]


class Choices:
    """The values that an option can have, where they are known only when the program runs.

    A closed set of constant values is a `Literal`. The fusion methods are listed in one place
    that a command line must not import before it is used.

    Args:
        values: gives the values.
    """

    def __init__(self, values: Callable[[], Sequence[str]]) -> None:
        self.values = values


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Make a function for typer: each parameter that is an option group becomes its fields.

    Args:
        command: takes option groups, and whatever else typer understands.

    Returns:
        A function with the name and the docstring of `command` and one parameter an option. It
        makes the groups from what typer gives it.
    """
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation) and isinstance(parameter.annotation, type):
            groups[parameter.name] = parameter.annotation
            parameters += _parameters(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**made, **values)

    run.__name__, run.__doc__, run.__annotations__ = command.__name__, command.__doc__, {}
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    return run


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    """One parameter a field, with the group's heading in its option."""
    found = []
    for field in fields(group):
        annotated = field.type
        if isinstance(annotated, str):  # rarely: looking all of them up takes time
            annotated = get_type_hints(group, include_extras=True)[field.name]
        assert get_origin(annotated) is Annotated, f"{group.__name__}.{field.name}"
        base, *marks = get_args(annotated)
        info = marks[-1]
        if info.rich_help_panel is None:
            # A copy, since a group with another heading may inherit the field. `copy.copy` is slow.
            info = object.__new__(type(info))
            vars(info).update(vars(marks[-1]), rich_help_panel=group.heading)
        if isinstance(marks[0], Choices):
            base = Literal[tuple(marks[0].values())] | None
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=Annotated[base, info],
            )
        )
    return found


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def parse_bytes(text: str, option: str = "--max-memory") -> int:
    """`500M`, `2G`, `1.5GiB` or plain bytes.

    Args:
        text: the value of the option.
        option: its name, for the error.

    Raises:
        UsageError: something else.
    """
    from fusecli.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    size = float(match[1]) * 1024 ** " kmgt".index(match[2] or " ") if match else 0.0
    if not 0 < size < float("inf"):  # 400 digits are more than a float holds
        raise UsageError(f"{option} {text}: expected a size such as 500M or 2G")
    return int(size)
