"""The commands there are."""

from __future__ import annotations

from typing import Annotated

import typer

from fusecli.cli.bench import bench
from fusecli.cli.fuse import fuse
from fusecli.cli.init import init
from fusecli.cli.inspect import inspect
from fusecli.cli.selftest import selftest

app = typer.Typer(
    name="fusecli",
    help="Fuse image features into text features by cross-attention.",
    add_completion=False,
    rich_markup_mode=None,  # plain help: it imports nothing and reads the same everywhere
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
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


app.command()(fuse)
app.command()(init)
app.command()(inspect)
app.command()(selftest)
app.command()(bench)
