"""`fusecli inspect FILE...`: what is in a file."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def inspect(
    files: Annotated[list[str], typer.Argument(help="Feature or weights files, or - for stdin.")],
    stats: Annotated[
        bool,
        typer.Option("--stats", help="Read the numbers too: NaN, infinities, zero rows, norms."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list of files.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show what files hold: names, shapes, types, how their axes would be read.

    Reads headers only, so it takes no longer for a large file, unless --stats is given.
    """
    from fusecli.cli.main import say_error
    from fusecli.errors import FuseError
    from fusecli.report.inspect import inspect_file

    found, failed = [], []
    for name in files:
        try:
            found.append(inspect_file(name, stats))
        except FuseError as error:
            if len(files) == 1:
                raise
            failed.append(str(error))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        from fusecli.cli.render import print_inspection

        print_inspection(found)
    for problem in failed:
        say_error(problem)
    if failed:
        raise typer.Exit(1)
