"""Help texts: what `--help` prints on a terminal of any width, and the manual page.

The text of a command is its docstring and its options; `describe` collects it once, for both.
typer's own help needs rich, and breaks words and choices in a narrow terminal.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# What most people need first.
FIRST_STEPS = (
    ("Fuse one pair of files:", "fusecli fuse image.npy text.npy"),
    ("Fuse many pairs:", "fusecli batch images/ texts/ -o fused/"),
    ("Train a fusion:", "fusecli train images/ texts/ --labels labels.csv -o run/"),
)

_WIDEST = 90  # columns; longer lines are hard to read
_NARROWEST = 20
_NAMES = 26  # columns for the names of options, where the help stands beside them
_TWO_COLUMNS = 66  # a terminal at least this wide has room for both
_METAVARS = {"integer": "N", "int": "N", "float": "X", "text": "TEXT", "str": "TEXT"}


@dataclass(frozen=True)
class Entry:
    """An option, an argument or a command.

    Attributes:
        names: how it is written: `-o, --output FILE`.
        help: what it means, with its choices and its default.
    """

    names: str
    help: str


@dataclass(frozen=True)
class Section:
    """Entries under one heading."""

    heading: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Description:
    """All that a help text says.

    Attributes:
        usage: the command line in short.
        paragraphs: of the docstring; the first is the summary.
        sections: options and commands.
    """

    usage: str
    paragraphs: tuple[str, ...]
    sections: tuple[Section, ...]


def describe(command: TyperCommand | TyperGroup, context: typer.Context) -> Description:
    """Collect the help of a command.

    Args:
        command: the command.
        context: of the command; it knows under which name the command is called.
    """
    grouped: dict[str, list[Entry]] = {}
    arguments = []
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            arguments.append(_argument(parameter))
        if not getattr(parameter, "hidden", False):
            heading = getattr(parameter, "rich_help_panel", None)
            # --help itself is added by typer and has no heading: it joins the last group.
            heading = heading or (list(grouped)[-1] if grouped else "Options")
            grouped.setdefault(heading, []).append(_entry(parameter))
    if isinstance(command, TyperGroup):
        commands = [command.get_command(context, name) for name in command.list_commands(context)]
        # The commands are what a reader looks for.
        grouped = {
            "Commands": [
                Entry(item.name or "", _paragraphs(item.help)[0])
                for item in commands
                if item is not None
            ],
            **grouped,
        }
        arguments = ["COMMAND", "..."]
    return Description(
        " ".join([context.command_path, "[OPTIONS]", *arguments]),
        tuple(_paragraphs(command.help)),
        tuple(Section(heading, tuple(entries)) for heading, entries in grouped.items()),
    )


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in (text or "").split("\n\n")]


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required else f"[{name}]"


def _entry(parameter: Any) -> Entry:
    help = [parameter.help or ""]
    choices = [str(choice) for choice in getattr(parameter.type, "choices", ())]
    if choices:
        help.append(f"One of: {', '.join(choices)}.")
    given = parameter.show_default
    flag = getattr(parameter, "is_flag", False)
    if isinstance(given, str):
        help.append(f"Default: {given}.")
    elif given and not flag and parameter.default not in (None, ..., 0, ()):
        help.append(f"Default: {parameter.default}.")
    if parameter.param_type_name == "argument":
        return Entry(_argument(parameter), " ".join(help))
    if parameter.required:
        help.append("Required.")
    names = [*sorted(parameter.opts, key=len), *parameter.secondary_opts]
    if flag:
        return Entry(", ".join(names), " ".join(help))
    metavar = parameter.metavar or _METAVARS.get(parameter.type.name, "NAME")
    return Entry(f"{', '.join(names)} {metavar}", " ".join(help))


def as_text(description: Description, columns: int | None = None) -> str:
    """The help as it is printed.

    Args:
        description: what it says.
        columns: how wide it may be; None means as wide as the terminal.
    """
    if columns is None:
        columns = shutil.get_terminal_size((80, 24)).columns
    width = max(_NARROWEST, min(_WIDEST, columns) - 1)
    bold = _bold()
    lines = [*_filled(description.usage, width, bold("Usage:") + " ", len("Usage: "), "    ")]
    for paragraph in description.paragraphs:
        lines += ["", *_filled(paragraph, width)]
    for section in description.sections:
        lines += ["", bold(section.heading)]
        for entry in section.entries:
            lines += _listed(entry, width)
    return "\n".join(lines) + "\n"


def first_steps(commands: Sequence[str]) -> str:
    """What `fusecli` alone prints: the commands that most people need first.

    Args:
        commands: names of all commands.
    """
    columns = shutil.get_terminal_size((80, 24)).columns
    width = max(len(what) for what, _ in FIRST_STEPS)
    beside = columns > width + max(len(command) for _, command in FIRST_STEPS) + 4
    lines = ["Fuse image features into text features by cross-attention.", ""]
    for what, command in FIRST_STEPS:
        lines += [f"  {what:{width}}  {command}"] if beside else [what, f"  {command}"]
    more = f"All commands: {', '.join(commands)}. 'fusecli --help' says what each one does."
    return "\n".join([*lines, "", *_filled(more, max(_NARROWEST, min(_WIDEST, columns) - 1))])


def _listed(entry: Entry, width: int) -> Iterator[str]:
    """An option: beside its help where there is room, else above it."""
    names, indent = f"  {entry.names}", "      "
    if width >= _TWO_COLUMNS - 1:
        indent = " " * (_NAMES + 2)
        if len(names) <= _NAMES:
            yield from _filled(entry.help, width, f"{names:{_NAMES + 2}}", _NAMES + 2, indent)
            return
    yield from _filled(entry.names, width, "  ", 2, indent)
    yield from _filled(entry.help, width, indent, len(indent), indent)


def _filled(
    text: str, width: int, first: str = "", first_width: int = 0, further: str = ""
) -> list[str]:
    """Lines of text that break between words only.

    Args:
        text: the text.
        width: of a line.
        first: what the first line begins with, which takes `first_width` columns.
        further: what the other lines begin with.
    """
    lines = textwrap.wrap(
        text,
        width,
        initial_indent="\0" * first_width,  # escape sequences in `first` take no columns
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [first + lines[0][first_width:], *lines[1:]] if lines else [first.rstrip()]


def _bold() -> Callable[[str], str]:
    """A function that makes a heading bold, or that changes nothing if stdout is no terminal."""
    plain = not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    if plain or "NO_COLOR" in os.environ:
        return lambda text: text
    return lambda text: typer.style(text, bold=True)


# ------------------------------------------------------------------------------- manual page


def manual_page(program: TyperGroup, context: typer.Context, version: str) -> str:
    """The manual page `fusecli.1` in the language of man.

    Args:
        program: with all commands.
        context: of the program.
        version: of fusecli.
    """
    whole = describe(program, context)
    lines = [
        f'.TH FUSECLI 1 "" "fusecli {version}" "User Commands"',
        ".SH NAME",
        f"fusecli \\- {_roff(whole.paragraphs[0].rstrip('.'))}",
        ".SH SYNOPSIS",
        _roff(whole.usage),
        ".SH DESCRIPTION",
    ]
    for paragraph in whole.paragraphs[1:]:
        lines += [".PP", _roff(paragraph)]
    for section in whole.sections:
        lines += [f".SH {_roff(section.heading.upper())}", *_tagged(section.entries)]
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        assert isinstance(command, TyperCommand)
        part = describe(command, typer.Context(command, info_name=name, parent=context))
        lines += [f".SH FUSECLI {_roff(name.upper())}", f".B {_roff(part.usage)}"]
        for paragraph in part.paragraphs:
            lines += [".PP", _roff(paragraph)]
        for section in part.sections:
            lines += [f".SS {_roff(section.heading)}", *_tagged(section.entries)]
    return "\n".join(lines) + "\n"


def _tagged(entries: tuple[Entry, ...]) -> Iterator[str]:
    for entry in entries:
        yield from (".TP", f".B {_roff(entry.names)}", _roff(entry.help))


def _roff(text: str) -> str:
    """Text in which nothing is a command of man."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
