"""The options that several commands have, each declared once. `options.py` says how.

A default of None means that the library's default, or the weights file's value, is used; the help
says which (`show_default`). To make start-up faster, groups have no `__eq__` and no `__repr__`, and
no annotation here is a string.
"""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.cli.options import Choices, OptionGroup, option_group
from fusecli.features.literals import MaskStyle
from fusecli.fusion.literals import Direction, Dtype, Engine, OutDtype, Pool

if TYPE_CHECKING:
    from fusecli.fusion.options import ModuleOptions


def method_names() -> tuple[str, ...]:
    """The fusion methods."""
    from fusecli.fusion.methods import METHODS

    return METHODS


# ------------------------------------------------------------------------------------ input


@option_group
class Tensors(OptionGroup):
    """Which tensor of a file is meant, and what its axes are."""

    heading: ClassVar[str] = "Input"
    image_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The image's tensor, in a file that holds several."),
    ] = None
    text_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The text's tensor, in a file that holds several."),
    ] = None
    image_axes: Annotated[
        str | None,
        typer.Option(
            metavar="AXES",
            help="The image's axes, one letter each: D, PD, ND, DP, NPD, PND, DHW, HWD, NDHW or "
            "NHWD.",
            show_default="inferred from the number of axes",
        ),
    ] = None
    text_axes: Annotated[
        str | None,
        typer.Option(
            metavar="AXES",
            help="The text's axes, one letter each: D, TD, ND, DT, NTD or TND.",
            show_default="inferred from the number of axes",
        ),
    ] = None


@option_group
class Reading(Tensors):
    """How features are read. Options that name a mask file are not here: a batch has none."""

    allow_empty_image: Annotated[
        bool,
        typer.Option(
            "--allow-empty-image",
            help="Accept an image whose tokens are all padding (with --direction image: a text). "
            "Its context is zero.",
        ),
    ] = False
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinity in the features.")
    ] = False
    allow_integers: Annotated[
        bool,
        typer.Option("--allow-integers", help="Accept whole numbers without a scale as features."),
    ] = False
    mask_style: Annotated[
        MaskStyle | None,
        typer.Option(
            help="What the numbers of a mask mean, where its name does not say it: 1 = real "
            "(keep), 1 = padding, 0 = real and large negatives (additive), or counts of real "
            "tokens (lengths).",
            show_default="inferred from names and numbers",
        ),
    ] = None


# ----------------------------------------------------------------------------------- module


@option_group
class ModuleSizes(OptionGroup):
    """The sizes of a module."""

    heading: ClassVar[str] = "Module"
    dim: Annotated[
        int | None,
        typer.Option(
            metavar="D",
            help="Width of the module.",
            show_default="the width of the text, or of the weights",
        ),
    ] = None
    heads: Annotated[
        int | None,
        typer.Option(
            metavar="H",
            help="Number of attention heads; must divide D.",
            show_default="8, or as in the weights",
        ),
    ] = None
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of layers of a transformer.", show_default="2"),
    ] = None
    ffn_dim: Annotated[
        int | None,
        typer.Option(
            metavar="F",
            help="Inner width of a transformer's feed-forward layers.",
            show_default="4 D",
        ),
    ] = None
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="Width in which a bilinear fusion multiplies its two sides.",
            show_default="D",
        ),
    ] = None


@option_group
class Module(ModuleSizes):
    """The module that `fusecli init` writes; see `ModuleOptions` in the library."""

    method: Annotated[
        str | None,
        Choices(method_names),
        typer.Option(
            help="How to fuse; 'fusecli methods' compares them. Without --dim, concat and sum "
            "need no weights; with it they project to D.",
            show_default="attention",
        ),
    ] = None
    residual: Annotated[
        bool | None,
        typer.Option(
            "--residual/--no-residual", help="Add the projected text to the attention's output."
        ),
    ] = None
    norm: Annotated[
        bool | None, typer.Option("--norm/--no-norm", help="Apply LayerNorm to the result.")
    ] = None
    null_token: Annotated[
        bool | None,
        typer.Option(
            "--null-token/--no-null-token",
            help="Add one all-zero key and value, so that attention can also choose no image "
            "token.",
        ),
    ] = None
    gate: Annotated[
        bool | None,
        typer.Option(
            "--gate/--no-gate",
            help="Add tanh(gate) times the attention's output to the text itself, which must be D "
            "wide. The gate starts at 0: an untrained module returns the text unchanged.",
        ),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="A", help="The text's share of a sum, from 0 to 1.", show_default="0.5"
        ),
    ] = None

    def module_options(self) -> "ModuleOptions":
        """These options as the library takes them."""
        from fusecli.fusion.options import ModuleOptions

        return ModuleOptions(**{field.name: getattr(self, field.name) for field in fields(Module)})


@option_group
class ModuleOfJob(Module):
    """A module, and where its weights come from."""

    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The trained weights: .safetensors, .npz, .pt, .pth or .ckpt, or the folder of a "
            "training run.",
            show_default="untrained weights from --seed",
        ),
    ] = None
    weights_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            help="What stands before the parameters' names, where a weights file holds several "
            "modules (one and its moving average, for example).",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Seed of the untrained weights, where --weights is not given.",
            show_default="0",
        ),
    ] = None

    def module_options(self) -> "ModuleOptions":
        """These options as the library takes them."""
        return replace(super().module_options(), weights_prefix=self.weights_prefix)


# ----------------------------------------------------------------------------------- result


@option_group
class Result(OptionGroup):
    """What is written of each pair."""

    heading: ClassVar[str] = "Result"
    direction: Annotated[
        Direction,
        typer.Option(
            help="Which side is the query side: its tokens get a fused vector each. 'both' writes "
            "two tensors, fused_text and fused_image, to .safetensors or .npz.",
        ),
    ] = "text"
    pool: Annotated[
        Pool | None,
        typer.Option(
            help="Write one vector a pair as well, pooled over the fused rows of the real tokens: "
            "a second tensor named pooled (with --direction both: pooled_text and pooled_image) "
            "in .safetensors or .npz.",
        ),
    ] = None
    out_dtype: Annotated[
        OutDtype,
        typer.Option(help="Type of the numbers in the file; bfloat16 needs .safetensors."),
    ] = "float32"


@option_group
class Replacing(OptionGroup):
    """Whether an existing output may be replaced."""

    heading: ClassVar[str] = "Result"
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace the output if it exists.")
    ] = False


@option_group
class Strictness(OptionGroup):
    """Whether a diagnosis stops the job."""

    heading: ClassVar[str] = "Result"
    strict: Annotated[
        bool,
        typer.Option("--strict", help="If there is a diagnosis, write nothing and exit with 1."),
    ] = False


# -------------------------------------------------------------------------------- computing


@option_group
class Computing(OptionGroup):
    """What computes, and in which type."""

    heading: ClassVar[str] = "Computing"
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto"
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in.")] = "float32"
    engine: Annotated[
        Engine,
        typer.Option(help="The library that computes; auto is numpy for float32 on the CPU."),
    ] = "auto"


# ---------------------------------------------------------------------- what the program says


@option_group
class Program(OptionGroup):
    """What a command prints. `--debug` is read by `main`, before a command runs."""

    heading: ClassVar[str] = "Output of the program"
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False


@option_group
class QuietProgram(Program):
    """As `Program`, for a command that prints notes."""

    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print no notes, warnings or progress on stderr; only errors."
        ),
    ] = False


@option_group
class JsonProgram(Program):
    """As `Program`, for a command whose result can be printed as JSON."""

    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON on stdout, instead of a path or a table."),
    ] = False


@option_group
class QuietJsonProgram(QuietProgram, JsonProgram):
    """As `Program`, for a command that prints notes and whose result can be printed as JSON."""
