"""The commands there are."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from fusecli.cli.options import spread

# Each is a function in the module of its name.
COMMANDS = ("fuse", "batch", "init", "inspect", "methods", "selftest", "bench")


def make_app(command: str | None = None) -> typer.Typer:
    """The program.

    Args:
        command: the one that will run; the others are then left out, which saves a small
            job a tenth of its time. Anything else gives the program with all of them.
    """
    app = typer.Typer(
        name="fusecli",
        help="Fuse image features into text features by cross-attention.",
        add_completion=False,
        rich_markup_mode=None,  # plain help: it imports nothing and reads the same everywhere
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(fusecli)
    for name in (command,) if command in COMMANDS else COMMANDS:
        function = getattr(import_module(f"fusecli.cli.commands.{name}"), name)
        app.command()(spread(function))
    return app


def fusecli(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fuse image features into text features by cross-attention.

    Reads features from .npy, .npz, .safetensors or .pt files; text tokens are the query,
    image tokens the key and value; writes one fused vector per text token.
    """
    if version:
        from fusecli import __version__

        typer.echo(f"fusecli {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
