"""`python -m fusecli.cli.man` prints the manual page; `make man` writes it to build/man."""

from __future__ import annotations

import sys

import typer

from fusecli._version import __version__
from fusecli.cli.app import Program, make_app
from fusecli.cli.help import manual_page


def print_page() -> None:
    """The manual page, from the same descriptions as `--help`."""
    program = typer.main.get_command(make_app())
    assert isinstance(program, Program)
    context = typer.Context(program, info_name="fusecli")
    sys.stdout.write(manual_page(program, context, __version__))


if __name__ == "__main__":
    print_page()
