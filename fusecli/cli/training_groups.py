"""The options that train, evaluate and predict share."""

from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.cli.options import OptionGroup, option_group, parse_bytes
from fusecli.training.literals import Task

if TYPE_CHECKING:
    from fusecli.training.options import LabelOptions


@option_group
class LabelColumns(OptionGroup):
    """Where the labels are."""

    heading: ClassVar[str] = "Labels"
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A .csv, .jsonl or .parquet file with the columns id and label, and optionally "
            "group, split (train, validation, test) and weight.",
            show_default="columns of --manifest",
        ),
    ] = None
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column of the labels.", show_default="label"),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Pairs with the same value in this column are never divided between training and "
            "test. Pairs that share an image never are.",
            show_default="group, if there is one",
        ),
    ] = None
    task: Annotated[
        Task | None,
        typer.Option(
            help="What the labels are: a class, several classes (a|b), a number, a list with one "
            "tag a text token, or none (match: does the image belong to the text).",
            show_default="told by the labels",
        ),
    ] = None

    def label_options(self, strict: bool) -> "LabelOptions":
        """These options as the library takes them."""
        from fusecli.training.options import LabelOptions

        return LabelOptions(self.labels, self.label_column, self.group, self.task, strict)


@option_group
class TrainingMachine(OptionGroup):
    """What computes."""

    heading: ClassVar[str] = "Computing"
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto"
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How much memory the features may take: 500M, 2G. Larger ones are read from the "
            "files again for every batch.",
            show_default="2G",
        ),
    ] = None

    def max_bytes(self) -> int | None:
        """The bound in bytes, or None."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)
