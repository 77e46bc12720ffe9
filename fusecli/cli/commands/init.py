"""`fusecli init`: write initial weights."""

from typing import Annotated, ClassVar

import typer

from fusecli.cli.option_groups import Module, QuietProgram, Replacing
from fusecli.cli.options import OptionGroup, option_group
from fusecli.cli.progress import Progress, print_path


@option_group
class InitialModule(Module):
    """The module, for features that need not be there yet."""

    dim: Annotated[int, typer.Option(metavar="D", help="Width of the module.")] = 768
    image_dim: Annotated[
        int | None,
        typer.Option(metavar="DI", help="Width of the image features.", show_default="--dim"),
    ] = None
    text_dim: Annotated[
        int | None,
        typer.Option(metavar="DT", help="Width of the text features.", show_default="--dim"),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the weights.")] = 0


@option_group
class WeightsFile(OptionGroup):
    """Where the weights go."""

    heading: ClassVar[str] = "Result"
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the weights go: a .safetensors file."
        ),
    ]


@option_group
class WeightsResult(Replacing, WeightsFile):
    """The weights file, and whether it may be replaced."""


def init(module: InitialModule, result: WeightsResult, program: QuietProgram) -> None:
    """Write initial, untrained weights to a file.

    They are those that 'fusecli fuse --seed' uses, and that torch gives for the seed (except for
    a transformer, whose layers each draw their own weights, where torch copies the first).
    Prints the path of the file.
    """
    from fusecli.errors import UsageError
    from fusecli.fusion.initial_weights import initial_weights
    from fusecli.fusion.weights import write_weights
    from fusecli.report.result_diagnoses import untrained_note

    for option, size in (("--image-dim", module.image_dim), ("--text-dim", module.text_dim)):
        if size is not None and size < 1:
            raise UsageError(f"{option} must be at least 1, found {size}")
    config = module.module_options().config(
        module.image_dim or module.dim, module.text_dim or module.dim
    )
    weights = initial_weights(config, module.seed)
    write_weights(result.output, config, weights, module.seed, result.force)
    with Progress("init", program.quiet) as progress:
        progress.tell(f"note: {untrained_note(result.output, module.seed, config)}")
    print_path(result.output)
