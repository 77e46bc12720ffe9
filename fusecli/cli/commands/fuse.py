"""`fusecli fuse IMAGE TEXT`: one pair of files."""

import os
import stat
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.cli.option_groups import (
    Computing,
    ModuleOfJob,
    QuietJsonProgram,
    Reading,
    Replacing,
    Result,
    Strictness,
)
from fusecli.cli.options import OptionGroup, option_group, parse_bytes
from fusecli.cli.progress import Progress, print_about, print_path
from fusecli.maps.literals import BoxFormat, BoxUnits

if TYPE_CHECKING:
    from fusecli.maps.view import AttentionView
    from fusecli.maps.writer import MapOptions

_TABLE = "table"  # the value of --report without a file name
_SMALL_BYTES = 1 << 19  # of features: some 0.3 billion multiply-adds at most


@option_group
class MaskFiles(OptionGroup):
    """Masks of a single pair of files."""

    heading: ClassVar[str] = "Input"
    image_mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:KEY]",
            help="Mask of the image tokens: 1 = real, 0 = padding. 'none' ignores a mask stored "
            "beside the features.",
        ),
    ] = None
    text_mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:KEY]",
            help="Mask of the text tokens: 1 = real, 0 = padding. 'none' ignores a mask stored "
            "beside the features.",
        ),
    ] = None


@option_group
class AttentionMaskFile(OptionGroup):
    """The attention mask of a single pair of files."""

    heading: ClassVar[str] = "Input"
    attention_mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:KEY]",
            help="Which text token may attend to which image token, [T, P] or [N, T, P]: 1 = may; "
            "or 0 = may and a large negative number = may not. --mask-style padding: 1 = may not.",
        ),
    ] = None


@option_group
class AttentionMaps(OptionGroup):
    """Attention weights as files and pictures; see `MapOptions` in the library."""

    heading: ClassVar[str] = "Attention maps"
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the attention weights, [T, P], averaged over the heads, to a .npy, .npz or "
            ".safetensors file.",
        ),
    ] = None
    per_head: Annotated[
        bool,
        typer.Option(
            "--per-head", help="With --attention: write the weights of every head, [H, T, P]."
        ),
    ] = False
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw the attention to a .png, .svg or .pdf file. Needs matplotlib (the extra "
            "'plot').",
        ),
    ] = None
    show: Annotated[
        bool, typer.Option("--show", help="Draw the attention in the terminal, on stderr.")
    ] = False
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Which pair of a stack is drawn, counted from 0.",
            show_default="0",
        ),
    ] = None
    layer: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Whose attention is shown, with --method transformer, counted from 0.",
            show_default="the last",
        ),
    ] = None
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="GRID",
            help="How the image tokens lie in the picture: 14x14, 14x14+1 with one token before "
            "the grid, or none.",
            show_default="a square, with or without a class token before it",
        ),
    ] = None
    image_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The photo that --plot lays the attention over."),
    ] = None
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:KEY]",
            help="A box for each image token, [P, 4], where image tokens are regions; 'none' "
            "ignores boxes beside the features.",
            show_default="boxes or bbox beside the features",
        ),
    ] = None
    box_format: Annotated[
        BoxFormat | None,
        typer.Option(
            help="What the numbers of a box are: corners, or a corner or the centre with width "
            "and height.",
            show_default="told by the numbers",
        ),
    ] = None
    box_units: Annotated[
        BoxUnits | None,
        typer.Option(
            help="Whether boxes are in pixels or in shares of the image's size.",
            show_default="told by the numbers",
        ),
    ] = None
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The text's tokens, which name the rows: a .txt file with one a line, a .json "
            "list, or FILE.json:NAME for one of several lists.",
        ),
    ] = None

    def map_options(self) -> "MapOptions":
        """These options as the library takes them."""
        from fusecli.maps.writer import MapOptions

        return MapOptions(**asdict(self))


@option_group
class ChunkedComputing(Computing):
    """As `Computing`, for a stack that is read in slices."""

    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How much of a stack may be in memory at once: 500M, 2G.",
            show_default="96M a core",
        ),
    ] = None

    def max_bytes(self) -> int | None:
        """The bound in bytes, or None."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)


@option_group
class PairOfFiles(OptionGroup):
    """The two files."""

    heading: ClassVar[str] = "Input"
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="Image features: a file, or - for .npy on stdin."),
    ]
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Text features: a file, or - for .npy on stdin.")
    ]


@option_group  # a dataclass lists its last base first
class FuseInput(Reading, AttentionMaskFile, MaskFiles, PairOfFiles):
    """All of the input."""


@option_group
class ResultFile(OptionGroup):
    """Where the result goes."""

    heading: ClassVar[str] = "Result"
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the result goes: .npy, .npz, .safetensors, or - for .npy on stdout.",
            show_default="the text's name with .fused.npy (.fused.safetensors where there are "
            "several tensors), in this folder",
        ),
    ] = None


@option_group
class FuseResult(Strictness, Replacing, Result, ResultFile):
    """All about the result."""


@option_group
class FuseProgram(QuietJsonProgram):
    """What is printed, and the report."""

    report: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[FILE.json]",
            help="The shape report: alone as a table on stderr, with FILE.json into that file. "
            "Can be given twice.",
        ),
    ] = None

    @property
    def table(self) -> bool:
        """Whether the report is printed as a table."""
        return _TABLE in (self.report or [])

    def report_files(self) -> tuple[str, ...]:
        """Where the report is written to.

        Raises:
            UsageError: a name has another ending than .json.
        """
        from fusecli.errors import UsageError

        files = [name for name in self.report or [] if name != _TABLE]
        for name in files:
            if not name.lower().endswith(".json"):
                raise UsageError(f"--report {name}: expected a name ending in .json, or none")
        return tuple(files)


def fuse(
    inputs: FuseInput,
    module: ModuleOfJob,
    result: FuseResult,
    maps: AttentionMaps,
    computing: ChunkedComputing,
    program: FuseProgram,
) -> None:
    """Fuse an image's features into a text's: one fused vector per text token.

    Prints the path of the result. Both files hold one pair (image [P, D] or one vector [D],
    text [T, D]) or a stack of pairs (image [N, P, D], text [N, T, D]).
    """
    _one_thread_for_small_products(inputs.image, inputs.text)
    from fusecli.errors import UsageError
    from fusecli.job.options import FuseOptions
    from fusecli.job.run import fuse_files

    report_files = program.report_files()
    if program.as_json and result.output == "-":
        raise UsageError("--json and -o - both want stdout: write one of them to a file")
    options = FuseOptions(
        **vars(inputs),
        switches=module.module_options(),
        weights=module.weights,
        seed=module.seed,
        **vars(result),
        maps=maps.map_options(),
        device=computing.device,
        dtype=computing.dtype,
        engine=computing.engine,
        max_memory=computing.max_bytes(),
        reports=report_files,
        provenance=program.as_json or bool(program.report),
    )
    # The table on stderr says what the warnings say.
    views: list[AttentionView] = []
    with Progress("fuse", program.quiet, warnings=not program.table) as progress:
        report = fuse_files(options, progress.tell, progress.update, views.append)
    if program.table:
        from fusecli.cli.tables import print_report

        print_report(report)
    for view in views:
        from fusecli.cli.heatmap import print_map

        print_map(view)
    if program.as_json:
        print_about(report.output.file, report.to_json().encode())
    elif report.output.file != "-":
        print_path(report.output.file)


def _one_thread_for_small_products(*files: str) -> None:
    """Keep OpenBLAS to one thread for a small job, before numpy loads it.

    A small product gains nothing from a second thread. Where another program keeps that core
    busy, each product waits for the scheduler, 4 to 20 milliseconds: five of them took a quarter
    of the time of a whole small job.
    """
    limits = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    if "numpy" in sys.modules or any(name in os.environ for name in limits):
        return
    try:
        found = [os.stat(file) for file in files]
    except OSError:  # stdin, or the command will say what is wrong with the file
        return
    regular = all(stat.S_ISREG(file.st_mode) for file in found)
    if regular and sum(file.st_size for file in found) <= _SMALL_BYTES:
        os.environ[limits[0]] = "1"
