"""What one job is: the options, the opened files, and everything decided from their headers."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusecli.errors import FeatureFileError, ShapeError, UsageError
from fusecli.features.atomic import check_target
from fusecli.features.axes import PairShapes, match_pair, read_axes
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.select import choose_mask, choose_tensor, read_mask, the_mask_of
from fusecli.features.tensor import StoredTensor
from fusecli.features.token_reader import TokenReader, refuse_empty_images
from fusecli.features.writer import ENDINGS
from fusecli.fusion.backend.device import resolve_device
from fusecli.fusion.build import check_engine
from fusecli.fusion.config import FusionConfig, divisors
from fusecli.fusion.initial_weights import check_seed
from fusecli.fusion.options import check_computing, check_origin, check_result
from fusecli.fusion.results import BOTH, query_sides
from fusecli.fusion.weights import ModuleOptions, WeightsFile, config_of, open_weights
from fusecli.maps.writer import MapOptions

if TYPE_CHECKING:
    from fusecli.maps.selection import Drawing


@dataclass(frozen=True)
class FuseOptions:
    """What `fusecli fuse` can be told; the meanings are those of the options of that name.

    Attributes:
        image, text: paths; one of all inputs may be "-" (.npy on stdin).
        output: a path, "-" (.npy on stdout), or None for the text's name in this folder.
        switches: what was said of the module: method, dim, heads, residual and the others.
        direction: "text", "image" or "both": the sides whose tokens get a fused vector each.
        pool: "mean", "max" or "first": one vector a pair besides, or None.
        seed: of initial weights where no weights are given; None means 0.
        image_mask, text_mask: a path, "none" to ignore a stored mask, or None.
        maps: what is wanted of attention besides.
        reports: .json paths the report is written to.
        provenance: hash the inputs for the report (reads them once more).
        max_memory: bytes a chunk may take.
    """

    image: str
    text: str
    output: str | None = None
    switches: ModuleOptions = field(default_factory=ModuleOptions)
    direction: str = "text"
    pool: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    engine: str = "auto"
    weights: str | None = None
    seed: int | None = None
    image_mask: str | None = None
    text_mask: str | None = None
    image_key: str | None = None
    text_key: str | None = None
    image_axes: str | None = None
    text_axes: str | None = None
    out_dtype: str = "float32"
    force: bool = False
    strict: bool = False
    allow_empty_image: bool = False
    allow_nonfinite: bool = False
    maps: MapOptions = field(default_factory=MapOptions)
    reports: tuple[str, ...] = ()
    provenance: bool = False
    max_memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("image", "text", "output", "weights", "image_mask", "text_mask"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else os.fspath(path))
        object.__setattr__(self, "reports", tuple(map(os.fspath, self.reports)))


@dataclass
class Side:
    """One opened input with its mask."""

    file: FeatureFile
    reader: TokenReader
    mask_entry: dict[str, Any] | None


@dataclass
class Job:
    """Everything decided before the first number is read."""

    options: FuseOptions
    image: Side
    text: Side
    shapes: PairShapes
    config: FusionConfig
    weights: WeightsFile | None
    seed: int | None
    heads_assumed: bool
    notes: list[str]
    output: str
    drawing: Drawing | None


def default_output(text: str, several: bool = False) -> str:
    """`<text stem>.fused.npy`, or .safetensors if the text was, in the working directory.

    Args:
        text: the text's path.
        several: the result is more than one tensor, which .npy does not hold.

    Raises:
        UsageError: the text comes from stdin and has no name.
    """
    if text == "-":
        raise UsageError("the text comes from stdin, so say where the result goes: -o FILE or -o -")
    stem, ending = os.path.splitext(os.path.basename(text))
    named = several or ending.lower() == ".safetensors"
    return f"{stem}.fused{'.safetensors' if named else '.npy'}"


def open_job(o: FuseOptions, stack: ExitStack) -> Job:
    """Open the files, decide what everything means, and refuse what cannot be done.

    Only headers and masks are read.

    Args:
        o: what to do.
        stack: closes the files.

    Raises:
        FuseError: the options, files, weights, device or output do not serve.
    """
    several = o.direction == BOTH or o.pool is not None
    output = default_output(o.text, several) if o.output is None else o.output
    _check_options(o, output)
    _check_targets(o, output, force=True)
    if o.device not in ("auto", "cpu"):
        resolve_device(o.device)  # before any work
    image_file, text_file = _open_both(o, stack)
    stored_image, stored_text, shapes = _choose_features(o, image_file, text_file)
    config, weights, seed, assumed = _choose_config(o, shapes, stored_text.where, stack)
    check_engine(config, o.engine)
    o.maps.check_method(config.method, o.direction)
    _check_widths(shapes, config, stored_image.where, stored_text.where, o.weights)
    two_tensors = image_file is text_file and stored_image.key != stored_text.key
    image = Side(
        image_file,
        TokenReader(stored_image, shapes.image, None, o.allow_nonfinite, shapes.image_shared),
        None,
    )
    text = Side(text_file, TokenReader(stored_text, shapes.text, None, o.allow_nonfinite), None)
    notes = list(shapes.notes)
    if seed is not None:
        notes.append(untrained_note(o.weights, seed, config))
    for side, option in ((image, o.image_mask), (text, o.text_mask)):
        _add_mask(side, option, shapes.N, two_tensors, notes)
    sides = query_sides(o.direction)
    config.check_directions(sides, o.weights)
    for asking in sides:
        asked = (image if asking == "text" else text).reader
        if asked.mask is not None and not o.allow_empty_image:
            refuse_empty_images(asked.mask, asked.stored.where, asked.axes.side)
    drawing = None
    if o.maps.drawn:  # nothing of drawing is imported where nothing is drawn
        from fusecli.maps.selection import prepare_drawing

        masks = image.reader.mask, text.reader.mask
        drawing = prepare_drawing(o.maps, shapes, o.text, *masks)
    # Last, so that what is wrong with the inputs is not hidden by an earlier run's result.
    _check_targets(o, output, o.force)
    return Job(o, image, text, shapes, config, weights, seed, assumed, notes, output, drawing)


def pair_shapes(o: FuseOptions) -> PairShapes:
    """How the two files of a job belong together, from their headers.

    Raises:
        FuseError: the files do not serve.
    """
    with ExitStack() as stack:
        return _choose_features(o, *_open_both(o, stack))[2]


def _choose_features(
    o: FuseOptions, image_file: FeatureFile, text_file: FeatureFile
) -> tuple[StoredTensor, StoredTensor, PairShapes]:
    stored_image = choose_tensor(image_file, "image", o.image_key)
    stored_text = choose_tensor(text_file, "text", o.text_key)
    shapes = match_pair(
        read_axes("image", stored_image.shape, o.image_axes, stored_image.where),
        read_axes("text", stored_text.shape, o.text_axes, stored_text.where),
        stored_image.where,
        stored_text.where,
    )
    return stored_image, stored_text, shapes


def _check_targets(o: FuseOptions, output: str, force: bool) -> None:
    given = [o.image, o.text, o.weights, o.image_mask, o.text_mask, o.maps.image_file]
    inputs = [name for name in given if name not in (None, "none")]
    if o.maps.tokens is not None:
        from fusecli.maps.token_labels import file_of

        inputs.append(file_of(o.maps.tokens))
    if output != "-":
        check_target(output, force, inputs, ENDINGS)
    if o.maps.attention is not None:
        check_target(o.maps.attention, force, inputs, ENDINGS)
    if o.maps.plot is not None:
        from fusecli.maps.picture import ENDINGS as PLOT_ENDINGS

        check_target(o.maps.plot, force, inputs, PLOT_ENDINGS)
    for path in o.reports:
        check_target(path, force, inputs, (".json",))


def _check_options(o: FuseOptions, output: str) -> None:
    check_computing(o.device, o.dtype, o.engine)
    check_result(o.out_dtype, o.direction, o.pool)
    if [o.image, o.text, o.image_mask, o.text_mask].count("-") > 1:
        raise UsageError("only one of image, text and their masks can come from stdin")
    check_origin(o.weights, o.seed)
    one_only = output == "-" or output.lower().endswith(".npy")
    if one_only and (o.direction == BOTH or o.pool is not None):
        what = "--direction both" if o.direction == BOTH else f"--pool {o.pool}"
        raise UsageError(
            f"{output}: {what} gives more than one tensor, and .npy holds one: say -o "
            "FILE.safetensors or FILE.npz"
        )
    if o.out_dtype == "bfloat16" and not output.lower().endswith(".safetensors"):
        raise UsageError("--out-dtype bfloat16 needs -o FILE.safetensors: .npy has no bfloat16")
    o.maps.check()
    _refuse_one_name_for_two(o, output)
    if o.maps.plot is not None:
        from fusecli.maps.picture import require_matplotlib

        require_matplotlib()


def _refuse_one_name_for_two(o: FuseOptions, output: str) -> None:
    named = [("the output", output), ("the attention", o.maps.attention), ("the plot", o.maps.plot)]
    named += [("the report", path) for path in o.reports]
    seen: dict[str, tuple[str, str]] = {}
    for what, path in named:
        if path is None or path == "-":
            continue
        other, first = seen.setdefault(os.path.realpath(path), (what, path))
        if other != what:
            raise UsageError(f"{first}: is both {other} and {what}")


def _open_both(o: FuseOptions, stack: ExitStack) -> tuple[FeatureFile, FeatureFile]:
    image = stack.enter_context(open_features(o.image))
    if o.image != "-" and os.path.exists(o.text) and os.path.samefile(o.image, o.text):
        return image, image
    return image, stack.enter_context(open_features(o.text))


def _choose_config(
    o: FuseOptions, shapes: PairShapes, text: str, stack: ExitStack
) -> tuple[FusionConfig, WeightsFile | None, int | None, bool]:
    """The config, the weights file, the seed of untrained weights, and if H was assumed."""
    if o.weights is not None:
        weights = open_weights(o.weights)
        stack.enter_context(weights.file)
        config, assumed = config_of(weights, o.switches)
        return config, weights, weights.seed, assumed
    swapped = "; if its axes are swapped say --text-axes DT" if shapes.text.letters == "TD" else ""
    where = f"text {text} {list(shapes.text.shape)}"
    config, seed = initial_config(
        o.switches, o.seed, shapes.image.width, shapes.text.width, where, swapped
    )
    return config, None, seed, False


def initial_config(
    s: ModuleOptions, seed: int | None, image_dim: int, text_dim: int, where: str, remedy: str = ""
) -> tuple[FusionConfig, int | None]:
    """The fusion without a weights file, and the seed of its weights, None where it has none.

    Args:
        s: what was said of it.
        seed: that was said.
        image_dim, text_dim: Di and Dt.
        where: the text, for errors.
        remedy: what else could be wrong, for errors.

    Raises:
        ShapeError: the default number of heads does not divide the text's width.
        UsageError: the options do not describe a fusion.
    """
    with_heads = s.method in (None, "attention", "transformer")
    if with_heads and s.dim is None and s.heads is None and text_dim % 8:
        possible = ", ".join(map(str, divisors(text_dim)))
        raise ShapeError(
            f"{where} is {text_dim} wide, and 8 heads do not divide that: say --heads with one of "
            f"{possible}, or --dim{remedy}"
        )
    config = s.config(image_dim, text_dim)
    if config.has_weights:
        return config, check_seed(seed or 0)
    if seed is not None:
        raise UsageError(f"--seed {seed}: --method {config.method} has no weights without --dim")
    return config, None


def untrained_note(weights: str | None, seed: int, config: FusionConfig) -> str:
    # A gate that is still closed has a diagnosis of its own.
    gives = "" if config.gate else ", its output is a fixed random projection"
    whose = weights or "no --weights"
    return f"{whose}: initial weights, seed {seed}; this module is untrained{gives}"


def _check_widths(
    shapes: PairShapes, config: FusionConfig, image: str, text: str, weights: str | None
) -> None:
    sides = ((shapes.image, config.image_dim), (shapes.text, config.text_dim))
    wrong = [(axes, wanted) for axes, wanted in sides if axes.width != wanted]
    if not wrong:
        return
    remedy = (
        "give weights of these widths (initial ones: fusecli init --image-dim "
        f"{shapes.image.width} --text-dim {shapes.text.width}) or leave --weights out"
    )
    for axes, wanted in wrong:
        before = axes.letters[-2:-1]
        if axes.letters.endswith("D") and before and axes.size(before) == wanted:
            swapped = f"{axes.letters[:-2]}D{before}"
            remedy = f"if its axes are swapped say --{axes.side}-axes {swapped}, else {remedy}"
    raise ShapeError(
        f"image {image} {list(shapes.image.shape)} is {shapes.image.width} wide and text {text} "
        f"{list(shapes.text.shape)} is {shapes.text.width} wide, but {weights} takes "
        f"{config.image_dim} and {config.text_dim}: {remedy}"
    )


def _add_mask(side: Side, option: str | None, N: int, two_tensors: bool, notes: list[str]) -> None:
    axes = side.reader.axes
    if option == "none":
        return
    if option is not None:
        with open_features(option) as file:
            stored = the_mask_of(file, axes.side)
            mask = read_mask(stored, axes, N)
    else:
        beside = choose_mask(side.file, axes.side, two_tensors)
        if beside is None:
            return
        stored, mask = beside, read_mask(beside, axes, N)
        notes.append(f"{stored.where} is used as the {axes.side} mask")
    if axes.side == "text" and not mask.any():
        raise FeatureFileError(f"{stored.where}: masks every text token: there is nothing to fuse")
    side.reader.mask = mask
    side.mask_entry = {
        "file": stored.file,
        "key": stored.key,
        "shape": list(stored.shape),
        "dtype": stored.dtype,
        "real": int(mask.sum()),
        "padding": int((~mask).sum()),
        "found": "option" if option is not None else "beside the features",
    }
