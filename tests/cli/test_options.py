"""Options are declared once: what the command line takes is what the library takes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, get_args, get_type_hints

import pytest
import typer

from fusecli import FuseOptions, MapOptions, ModuleOptions
from fusecli.batch import BatchOptions, ReadOptions
from fusecli.batch.literals import ON_ERROR
from fusecli.cli import option_groups, pair_groups, training_groups
from fusecli.cli.commands import batch, fuse, train
from fusecli.cli.options import Choices, parse_bytes, spread
from fusecli.errors import UsageError
from fusecli.features.writer import OUT_DTYPES
from fusecli.fusion.options import DTYPES, ENGINES
from fusecli.pairs.open import PairOptions
from fusecli.training.options import TrainOptions


@dataclasses.dataclass(kw_only=True)
class Colours:
    """A group with one option of each kind."""

    heading: ClassVar[str] = "Colours"
    hue: Annotated[str | None, Choices(lambda: ("red", "blue")), typer.Option(help="Which.")] = None
    amount: Annotated[int, typer.Option("--amount", "-n", help="How much.")] = 3
    name: Annotated[str, typer.Argument(help="Whose.")]


def test_a_command_gets_its_groups_made_of_its_options() -> None:
    taken: list[tuple[Colours, bool]] = []

    def paint(colours: Colours, fast: Annotated[bool, typer.Option("--fast")] = False) -> None:
        """Paint."""
        taken.append((colours, fast))

    app = typer.Typer(add_completion=False)
    app.command()(spread(paint))
    app(["x", "--hue", "blue", "-n", "5", "--fast"], standalone_mode=False)
    app(["y"], standalone_mode=False)
    assert taken == [
        (Colours(hue="blue", amount=5, name="x"), True),
        (Colours(hue=None, amount=3, name="y"), False),
    ]
    command = typer.main.get_command(app)
    panels = {p.name: p.rich_help_panel for p in command.params}  # type: ignore[attr-defined]
    assert panels == {"hue": "Colours", "amount": "Colours", "name": "Colours", "fast": None}
    with pytest.raises(Exception, match="'green' is not one of 'red', 'blue'"):
        app(["x", "--hue", "green"], standalone_mode=False)


def test_choices_are_asked_for_when_the_command_is_made() -> None:
    values = ["one"]

    @dataclasses.dataclass(kw_only=True)
    class Late:
        heading: ClassVar[str] = "Late"
        which: Annotated[str | None, Choices(lambda: values), typer.Option()] = None

    Late.__annotations__["which"] = Annotated[str | None, Choices(lambda: values), typer.Option()]

    def run(late: Late) -> None: ...

    run.__annotations__ = {"late": Late}
    values.append("two")
    app = typer.Typer(add_completion=False)
    app.command()(spread(run))
    assert app(["--which", "two"], standalone_mode=False) is None


@pytest.mark.parametrize(
    ("alias", "values"),
    [
        (option_groups.Dtype, DTYPES),
        (option_groups.Engine, ENGINES),
        (option_groups.OutDtype, OUT_DTYPES),
        (option_groups.Pool, ("mean", "max", "first")),
        (option_groups.Direction, ("text", "image", "both")),
        (batch.OnError, ON_ERROR),
    ],
)
def test_closed_sets_are_those_of_the_library(alias: object, values: tuple[str, ...]) -> None:
    assert get_args(alias) == tuple(values)


@pytest.mark.parametrize(
    ("group", "library"),
    [
        (option_groups.Module, ModuleOptions),
        (fuse.AttentionMaps, MapOptions),
        (pair_groups.ManyPairs, PairOptions),
        (fuse.FuseInput, FuseOptions),
        (fuse.FuseResult, FuseOptions),
        (option_groups.Computing, FuseOptions),
        (option_groups.Computing, BatchOptions),
        (batch.Run, BatchOptions),
        (option_groups.Reading, ReadOptions),
        (train.Recipe, TrainOptions),
    ],
)
def test_options_have_the_names_and_defaults_of_the_library(group: type, library: type) -> None:
    known = {field.name: field.default for field in dataclasses.fields(library)}
    for field in dataclasses.fields(group):
        assert field.name in known
        assert field.default == known[field.name], field.name


def test_every_option_of_reading_reaches_the_library() -> None:
    known = {
        "image_key": "a", "text_key": "b", "image_axes": "DP", "text_axes": "DT",
        "allow_empty_image": True, "allow_nonfinite": True, "allow_integers": True,
        "mask_style": "padding",
    }  # fmt: skip
    given = {
        field.name: known.get(field.name, field.default is False or "a value")
        for field in dataclasses.fields(option_groups.Reading)
    }
    assert known.keys() <= given.keys()
    read = pair_groups.PairsToRead(**given, image_mask="none").read_options()
    assert dataclasses.asdict(read) == given | {"image_mask": False, "text_mask": True}
    with pytest.raises(UsageError, match="only 'none' is possible here"):
        pair_groups.PairsToRead(text_mask="m.npy").read_options()


def test_every_field_of_a_group_has_help() -> None:
    groups = [
        value
        for module in (option_groups, pair_groups, training_groups, batch, fuse, train)
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ]
    assert len(groups) > 10
    for group in groups:
        hints = get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            assert get_args(hints[field.name])[-1].help


@pytest.mark.parametrize(
    ("text", "size"), [("500M", 500 << 20), ("1.5GiB", 3 << 29), ("12", 12), (" 2 kb ", 2048)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["0", "", "M", "1 X", "-1G", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size such as 500M or 2G"):
        parse_bytes(text)


def test_a_job_reads_its_files_as_its_options_say() -> None:
    own = {field.name for field in dataclasses.fields(FuseOptions)}
    for field in dataclasses.fields(ReadOptions):
        assert field.name in own
        given = f"a {field.name}"
        reading = FuseOptions("i.npy", "t.npy", **{field.name: given}).reading
        wanted = True if field.name in ("image_mask", "text_mask") else given
        assert dataclasses.asdict(reading) == dataclasses.asdict(ReadOptions()) | {
            field.name: wanted
        }
    ignored = FuseOptions("i.npy", "t.npy", image_mask="none", text_mask="none").reading
    assert (ignored.image_mask, ignored.text_mask) == (False, False)
