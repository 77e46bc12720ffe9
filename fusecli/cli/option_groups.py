"""The options that several commands have, each declared once. `options.py` says how.

A default of None means that the library's default, or the weights file's value, is used; the help
says which (`show_default`). Groups are never compared or printed, and start-up is faster without
`__eq__` and `__repr__`; for the same reason no annotation here is a string.
"""

from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fusecli.cli.options import Choices, OptionGroup, option_group, parse_bytes
from fusecli.features.literals import MaskStyle
from fusecli.fusion.literals import Direction, Dtype, Engine, OutDtype, Pool
from fusecli.maps.literals import BoxFormat, BoxUnits

if TYPE_CHECKING:
    from fusecli.features.pair_inputs import ReadOptions
    from fusecli.fusion.options import ModuleOptions
    from fusecli.maps.writer import MapOptions
    from fusecli.pairs.open import PairOptions


def shared_values(library: type, *groups: OptionGroup) -> dict[str, Any]:
    """The options that a data class of the library has a field of the same name for."""
    names = {field.name for field in fields(library)}
    return {
        field.name: getattr(group, field.name)
        for group in groups
        for field in fields(group)  # type: ignore[arg-type] # `option_group` makes it a data class
        if field.name in names
    }


def method_names() -> tuple[str, ...]:
    """The fusion methods."""
    from fusecli.fusion.methods import METHODS

    return METHODS


# ------------------------------------------------------------------------------------ input


@option_group
class ManyPairs(OptionGroup):
    """Where a batch finds its pairs; training takes the same sources."""

    heading: ClassVar[str] = "Input"
    images: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGES",
            help="Folder of image features, or a .safetensors file keyed by pair id.",
        ),
    ] = None
    texts: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXTS",
            help="The same for the texts. Leave it out if one file holds both sides.",
        ),
    ] = None
    manifest: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A .csv, .jsonl or .parquet file that lists the pairs."),
    ] = None
    image_pattern: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Names of the image files, such as {id}_img.npy."),
    ] = None
    text_pattern: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Names of the text files, such as {id}.txt.npy."),
    ] = None
    loose_ids: Annotated[
        bool,
        typer.Option(
            "--loose-ids",
            help="Match names that differ only in case, Unicode form or leading zeros.",
        ),
    ] = False
    keyed: Annotated[
        bool | None,
        typer.Option(
            "--keyed/--no-keyed",
            help="The folders hold tensors keyed by pair id, or one file a pair. Default: their "
            "file names decide.",
        ),
    ] = None
    strict_pairs: Annotated[
        bool, typer.Option("--strict-pairs", help="Stop if a file or a row has no partner.")
    ] = False

    def pair_options(self) -> "PairOptions":
        """These options as the library takes them."""
        from fusecli.pairs.open import PairOptions

        return PairOptions(**shared_values(PairOptions, self))


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
            show_default="told from the number of axes",
        ),
    ] = None
    text_axes: Annotated[
        str | None,
        typer.Option(
            metavar="AXES",
            help="The text's axes, one letter each: D, TD, ND, DT, NTD or TND.",
            show_default="told from the number of axes",
        ),
    ] = None


@option_group
class Reading(Tensors):
    """How features are read; everything but the masks, which a batch cannot take from a file."""

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
            help="What masks hold whose names do not say it: 1 = real (keep), 1 = padding, 0 = "
            "real and large negatives (additive), or counts of real tokens (lengths).",
            show_default="told from names and numbers",
        ),
    ] = None


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
class StoredMasks(OptionGroup):
    """Masks of many pairs: stored beside the features, or listed in a manifest."""

    heading: ClassVar[str] = "Input"
    image_mask: Annotated[
        str | None,
        typer.Option(metavar="none", help="'none' ignores image masks, stored or listed."),
    ] = None
    text_mask: Annotated[
        str | None,
        typer.Option(metavar="none", help="'none' ignores text masks, stored or listed."),
    ] = None
    attention_mask: Annotated[
        str | None,
        typer.Option(metavar="FILE", hidden=True, help="Only `fusecli fuse` takes one."),
    ] = None

    def check(self) -> None:
        """Raises:
        UsageError: a mask file is given.
        """
        from fusecli.errors import UsageError

        if self.attention_mask is not None:
            raise UsageError(
                f"--attention-mask {self.attention_mask}: only `fusecli fuse` takes this option, "
                "and `fusecli batch` a column attention_mask in --manifest; training takes no "
                "attention mask"
            )
        for side, given in (("image", self.image_mask), ("text", self.text_mask)):
            if given not in (None, "none"):
                raise UsageError(
                    f"--{side}-mask {given}: a batch takes masks from beside the features or from "
                    "--manifest; only 'none' is possible here"
                )


@option_group
class PairsToRead(Reading, StoredMasks, ManyPairs):  # a dataclass lists its last base first
    """Where many pairs are, and how they are read."""

    def read_options(self) -> "ReadOptions":
        """How features are read, as the library takes it.

        Raises:
            UsageError: a mask file is given.
        """
        from fusecli.features.pair_inputs import ReadOptions

        self.check()
        values = shared_values(ReadOptions, self)
        # A mask is used unless the option says 'none', which is all it can say here.
        masks = {name: values[name] is None for name in ("image_mask", "text_mask")}
        return ReadOptions(**(values | masks))


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


# --------------------------------------------------------------------------- attention maps


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
