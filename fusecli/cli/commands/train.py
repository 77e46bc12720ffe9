"""`fusecli train IMAGES TEXTS --labels FILE -o RUN`: learn a fusion, and what the image adds."""

import shlex
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.cli.option_groups import (
    Module,
    QuietJsonProgram,
    method_names,
)
from fusecli.cli.options import Choices, OptionGroup, option_group
from fusecli.cli.pair_groups import PairsToRead, shared_values
from fusecli.cli.progress import print_path
from fusecli.cli.training_groups import LabelColumns, TrainingMachine
from fusecli.cli.training_progress import TrainingProgress
from fusecli.training.literals import TrainDtype

if TYPE_CHECKING:
    from fusecli.training.options import TrainOptions

_AUTO = "auto"
_ARGUMENTS = ("images", "texts")  # which have no name


@option_group
class TrainModule(Module):
    """The fusion that is trained. `--method auto` is the default."""

    method: Annotated[
        str | None,
        Choices(lambda: (_AUTO, *method_names())),
        typer.Option(
            help="How to fuse; 'fusecli methods' compares them. auto trains a few candidates and "
            "takes the one that is best on the validation part.",
            show_default="auto",
        ),
    ] = None


@option_group
class Recipe(OptionGroup):
    """How it is trained."""

    heading: ClassVar[str] = "Training"
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs, at most.", show_default="by the number of pairs"),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Pairs a step.", show_default="32 or 64, by the number of pairs"
        ),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="The highest learning rate.",
            show_default="0.001 or 0.0005, by the number and width of the pairs",
        ),
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Weight decay.", show_default="0.05")
    ] = None
    dropout: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Dropout in the head.", show_default="by the number of pairs"
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Epochs without a better validation score before training stops.",
            show_default="10",
        ),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all that is random.")] = 0
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Train every model with K seeds and average them.",
            show_default="by the number of pairs",
        ),
    ] = None
    val_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the inner validation part.",
            show_default="0.1 to 0.2, by the number of pairs",
        ),
    ] = None
    test_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the held-out test part.",
            show_default="0.1 to 0.2, by the number of pairs",
        ),
    ] = None
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Hold out every pair once, in K folds; then train on all pairs for the weights.",
        ),
    ] = None


@option_group
class RunFolderOptions(OptionGroup):
    """The folder of the run."""

    heading: ClassVar[str] = "Result"
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="The folder of the run.")
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Stop if there is no run to go on with. The same command goes on by itself.",
        ),
    ] = False
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Begin anew over a run of other options or data."),
    ] = False


@option_group
class TrainComputing(TrainingMachine):
    """What computes, and in which type."""

    dtype: Annotated[
        TrainDtype,
        typer.Option(help="bfloat16 computes in mixed precision on a GPU."),
    ] = "float32"


def train(
    inputs: PairsToRead,
    labels: LabelColumns,
    module: TrainModule,
    recipe: Recipe,
    result: RunFolderOptions,
    computing: TrainComputing,
    program: QuietJsonProgram,
) -> None:
    """Learn a fusion from pairs and labels, and measure what the image adds.

    Baselines are trained beside it on the same split: text only, image only, both without
    interaction, concat + MLP. Run the same command again to go on where it was stopped.
    """
    from fusecli.errors import UsageError

    if result.output is None:
        raise UsageError("-o DIR is missing: where does the run go?")
    options = _train_options(inputs, labels, module, recipe, result, computing)
    from fusecli.training.report import as_json
    from fusecli.training.train import run_training

    with TrainingProgress(program.quiet) as progress:
        try:
            outcome = run_training(options, progress.tell, progress)
        except Exception:
            raise
        except BaseException:  # a signal: see fusecli.cli.main
            progress.clear()
            if not program.quiet:
                print("stopped; the same command goes on from here", file=sys.stderr)
            raise
        if outcome.complete_before:
            progress.tell(f"note: {outcome.output} is complete: nothing was computed")
        for line in outcome.lines:
            progress.tell(line)
        run = shlex.quote(outcome.output)
        first = f"fusecli evaluate {run} {_source(inputs, labels)}"
        if options.folds:  # these pairs would be evaluated by models that have learnt from them
            first = (
                f"fusecli evaluate {run} or fusecli predict {run} with other pairs (the run has "
                "learnt from all of these)"
            )
        progress.tell(f"next: {first}, or fusecli fuse IMAGE TEXT --weights {run}")
    if program.as_json:
        sys.stdout.write(as_json(outcome.metrics).decode())
    else:
        print_path(outcome.output)


def _source(*groups: OptionGroup) -> str:
    """The options about pairs and labels that were given, as one writes them in a shell."""
    words: list[str] = []
    for group in groups:
        for field in fields(group):  # type: ignore[arg-type] # `option_group` makes it a data class
            value, option = getattr(group, field.name), field.name.replace("_", "-")
            if value == field.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [*([] if field.name in _ARGUMENTS else [f"--{option}"]), str(value)]
    return shlex.join(words)


def _train_options(
    inputs: PairsToRead,
    labels: LabelColumns,
    module: TrainModule,
    recipe: Recipe,
    result: RunFolderOptions,
    computing: TrainComputing,
) -> "TrainOptions":
    """The options as the library takes them."""
    from fusecli.training.options import TrainOptions

    assert result.output is not None
    chosen = module.module_options()
    values = shared_values(TrainOptions, recipe, result, computing)
    values |= {
        "pairs": inputs.pair_options(),
        "labels": labels.label_options(inputs.strict_pairs),
        "reading": inputs.read_options(),
        "method": module.method or _AUTO,
        "module": replace(chosen, method=None) if chosen.method == _AUTO else chosen,
        "max_memory": computing.max_bytes(),
    }
    return TrainOptions(**values)
