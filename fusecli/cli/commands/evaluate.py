"""`fusecli evaluate RUN IMAGES TEXTS --labels FILE`: a run on other pairs."""

import sys
from typing import Annotated, ClassVar

import typer

from fusecli.cli.option_groups import QuietJsonProgram
from fusecli.cli.options import OptionGroup, option_group
from fusecli.cli.pair_groups import PairsToRead
from fusecli.cli.training_groups import LabelColumns, TrainingMachine
from fusecli.cli.training_progress import TrainingProgress


@option_group
class FinishedRun(OptionGroup):
    """The run."""

    heading: ClassVar[str] = "Input"
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The folder that 'fusecli train -o' has written.")
    ]


@option_group
class Draws(OptionGroup):
    """What is random in a measurement."""

    heading: ClassVar[str] = "Computing"
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of samples, shuffles and the bootstrap.")
    ] = 0


def evaluate(
    finished: FinishedRun,
    inputs: PairsToRead,
    labels: LabelColumns,
    draws: Draws,
    computing: TrainingMachine,
    program: QuietJsonProgram,
) -> None:
    """Measure a trained run on pairs with labels: all models, intervals, and interaction.

    Prints the table, the verdict, the metric without interaction (EMAP) and the metric with
    shuffled images and texts. Pairs that the run has learnt from are left out.
    """
    from fusecli.training.evaluate import RunOptions, evaluate_run
    from fusecli.training.report import as_json

    options = RunOptions(
        finished.run,
        inputs.pair_options(),
        labels.label_options(inputs.strict_pairs),
        inputs.read_options(),
        seed=draws.seed,
        device=computing.device,
        max_memory=computing.max_bytes(),
    )
    with TrainingProgress(program.quiet) as progress:
        metrics, lines = evaluate_run(options, progress.tell, progress)
    if program.as_json:
        sys.stdout.write(as_json(metrics).decode())
    else:
        sys.stdout.write("\n".join(lines) + "\n")
