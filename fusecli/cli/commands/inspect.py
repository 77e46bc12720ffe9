"""`fusecli inspect FILE...`: what is in a file."""

import json
import os
import sys
from typing import Annotated, ClassVar

import typer

from fusecli.cli.option_groups import JsonProgram
from fusecli.cli.options import OptionGroup, option_group

MOST_TENSORS = 400  # of a file, that are shown


@option_group
class InspectInput(OptionGroup):
    """The files."""

    heading: ClassVar[str] = "Input"
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...", help="Feature or weights files, folders of them, or - for stdin."
        ),
    ]
    stats: Annotated[
        bool,
        typer.Option("--stats", help="Read the numbers too: NaN, infinities, zero rows, norms."),
    ] = False


def inspect(inputs: InspectInput, program: JsonProgram) -> None:
    """Show what files hold: names, shapes, types, and how their axes would be read.

    Reads headers only, so it takes no longer for a large file, unless --stats is given.
    """
    from fusecli.cli.main import say_error
    from fusecli.errors import FuseError
    from fusecli.fusion.weights_file import weights_path
    from fusecli.report.inspect import inspect_file, inspect_folder
    from fusecli.report.inspect_parts import InspectedFile, InspectedFolder

    # A person reads no more, and a script all.
    most = None if program.as_json else MOST_TENSORS
    found: list[InspectedFile | InspectedFolder] = []
    failed = []
    for name in inputs.files:
        try:
            if os.path.isdir(weights_path(name)):
                found.append(inspect_folder(name, inputs.stats, most))
            else:
                found.append(inspect_file(name, inputs.stats, most))
        except FuseError as error:
            if len(inputs.files) == 1:
                raise
            failed.append(str(error))
    if program.as_json:
        sys.stdout.write(json.dumps([file.to_dict() for file in found], indent=2) + "\n")
    else:
        from fusecli.cli.tables import print_inspection

        print_inspection(found)
    for problem in failed:
        say_error(problem)
    if failed:
        raise typer.Exit(1)
