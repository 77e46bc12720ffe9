"""`fusecli predict RUN IMAGES TEXTS -o FILE`: what a run says of pairs without labels."""

from typing import Annotated, ClassVar

import typer

from fusecli.cli.commands.evaluate import FinishedRun
from fusecli.cli.option_groups import QuietProgram
from fusecli.cli.options import OptionGroup, option_group
from fusecli.cli.pair_groups import PairsToRead
from fusecli.cli.progress import print_path
from fusecli.cli.training_groups import TrainingMachine
from fusecli.cli.training_progress import TrainingProgress


@option_group
class PredictionsFile(OptionGroup):
    """What is written."""

    heading: ClassVar[str] = "Result"
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="The .csv file of the predictions."),
    ] = "predictions.csv"
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace the output if it exists.")
    ] = False


def predict(
    finished: FinishedRun,
    inputs: PairsToRead,
    result: PredictionsFile,
    computing: TrainingMachine,
    program: QuietProgram,
) -> None:
    """Write what a trained run says of pairs: the answer, and the probability of each class.

    One row a pair; for tags one row a text token.
    """
    from fusecli.training.evaluate import RunOptions, predict_run

    options = RunOptions(
        finished.run,
        inputs.pair_options(),
        reading=inputs.read_options(),
        output=result.output,
        device=computing.device,
        max_memory=computing.max_bytes(),
        force=result.force,
    )
    with TrainingProgress(program.quiet) as progress:
        output = predict_run(options, progress.tell, progress)
    print_path(output)
