"""The commands there are, and what the program does without one."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from fusecli.cli.options import spread

# Each is a function in the module of its name.
COMMANDS = (
    "fuse",
    "batch",
    "train",
    "evaluate",
    "predict",
    "init",
    "inspect",
    "methods",
    "selftest",
    "bench",
)

_DETECTED = "detect"  # the value of --show-completion without the name of a shell


class Command(TyperCommand):
    """A command whose help shows its options in groups."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from fusecli.cli.help import as_text, describe

        formatter.write(as_text(describe(self, ctx)))


class Program(TyperGroup):
    """The program, whose help lists the commands with their whole summaries."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from fusecli.cli.help import as_text, describe

        formatter.write(as_text(describe(self, ctx)))


def make_app(command: str | None = None) -> typer.Typer:
    """The program.

    Args:
        command: the one that will run; the others are then left out, which saves a small
            job a tenth of its time. Anything else gives the program with all of them.
    """
    app = typer.Typer(
        name="fusecli",
        cls=Program,
        add_completion=False,  # see completion.py
        rich_markup_mode=None,  # the help is plain text: see help.py
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(fusecli)
    for name in (command,) if command in COMMANDS else COMMANDS:
        function = getattr(import_module(f"fusecli.cli.commands.{name}"), name)
        app.command(cls=Command)(spread(function))
    return app


def fusecli(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            help="Let the shell complete commands, options and their choices with the Tab key: "
            "bash, zsh, fish, powershell or pwsh.",
            show_default="the shell that runs",
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            help="Print the lines that --install-completion would install.",
            show_default="the shell that runs",
        ),
    ] = None,
) -> None:
    """Fuse image features into text features by cross-attention.

    Reads features from .npy, .npz, .safetensors or .pt files. Text tokens are the query side,
    image tokens the context side (keys and values); the result is one vector per text token.
    'fusecli COMMAND --help' lists the options of a command.
    """
    if version:
        from fusecli._version import __version__

        typer.echo(f"fusecli {__version__}")
    elif install_completion is not None or show_completion is not None:
        from fusecli.cli.completion import install, show

        if install_completion is not None:
            install(install_completion)
        else:
            show(show_completion or _DETECTED)
    elif context.invoked_subcommand is None:
        from fusecli.cli.help import first_steps

        typer.echo(first_steps(COMMANDS))
        raise typer.Exit(2)
