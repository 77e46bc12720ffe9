"""The options of one job, and which of them exclude each other."""

from __future__ import annotations

import os
from dataclasses import field

from fusecli.errors import UsageError
from fusecli.features.atomic import check_target
from fusecli.features.formats.table import WRITABLE_ENDINGS
from fusecli.features.mask_names import MaskStyle
from fusecli.features.pair_inputs import ReadOptions
from fusecli.features.select import file_and_key
from fusecli.fusion.literals import BOTH, Direction, Dtype, Engine, OutDtype, Pool
from fusecli.fusion.options import ModuleOptions, check_computing, check_origin, check_result
from fusecli.fusion.weights_file import records_beside, weights_path
from fusecli.maps.writer import MapOptions
from fusecli.records import record


@record
class FuseOptions:
    """The options of `fusecli fuse`, with the meanings of the options of that name.

    Attributes:
        image, text: paths; one of all inputs may be "-" (.npy on stdin).
        output: a path, "-" (.npy on stdout), or None for the text's name in this folder.
        switches: the options of the module: method, dim, heads, residual and the others.
        direction: "text", "image" or "both": the sides whose tokens get a fused vector each.
        pool: "mean", "max" or "first": one vector a pair besides, or None.
        seed: of initial weights where no weights are given; None means 0.
        image_mask, text_mask: `FILE` or `FILE:KEY`, "none" to ignore a stored mask, or None.
        attention_mask: `FILE` or `FILE:KEY`, which text token may attend to which image token.
        allow_integers: whole numbers without a scale are features.
        mask_style: what the numbers of masks mean whose names do not say it.
        maps: what is wanted of attention besides.
        reports: .json paths the report is written to.
        provenance: hash the inputs for the report (reads them once more).
        max_memory: bytes a chunk may take.
    """

    image: str
    text: str
    output: str | None = None
    switches: ModuleOptions = field(default_factory=ModuleOptions)
    direction: Direction = "text"
    pool: Pool | None = None
    device: str = "auto"
    dtype: Dtype = "float32"
    engine: Engine = "auto"
    weights: str | None = None
    seed: int | None = None
    image_mask: str | None = None
    text_mask: str | None = None
    attention_mask: str | None = None
    image_key: str | None = None
    text_key: str | None = None
    image_axes: str | None = None
    text_axes: str | None = None
    out_dtype: OutDtype = "float32"
    force: bool = False
    strict: bool = False
    allow_empty_image: bool = False
    allow_nonfinite: bool = False
    allow_integers: bool = False
    mask_style: MaskStyle | None = None
    maps: MapOptions = field(default_factory=MapOptions)
    reports: tuple[str, ...] = ()
    provenance: bool = False
    max_memory: int | None = None

    def __post_init__(self) -> None:
        paths = ("image", "text", "output", "weights", "image_mask", "text_mask", "attention_mask")
        for name in paths:
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else os.fspath(path))
        object.__setattr__(self, "reports", tuple(map(os.fspath, self.reports)))
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_path(self.weights))

    @property
    def reading(self) -> ReadOptions:
        """How both files are read: the values of the options that have these names."""
        given = {name: getattr(self, name) for name in ReadOptions.__dataclass_fields__}
        given["image_mask"] = self.image_mask != "none"
        given["text_mask"] = self.text_mask != "none"
        return ReadOptions(**given)


def default_output(options: FuseOptions) -> str:
    """`<stem>.fused.npy` in the working folder, with the stem of the query side's file.

    It is .safetensors where that file is, or where .npy does not hold the result: more than one
    tensor, or bfloat16.

    Raises:
        UsageError: that file comes from stdin and has no name.
    """
    side, path = (
        ("image", options.image) if options.direction == "image" else ("text", options.text)
    )
    if path == "-":
        raise UsageError(
            f"the {side} comes from stdin, so say where the result goes: -o FILE or -o -"
        )
    stem, ending = os.path.splitext(os.path.basename(path))
    several = options.direction == BOTH or options.pool is not None
    named = several or options.out_dtype == "bfloat16" or ending.lower() == ".safetensors"
    return f"{stem}.fused{'.safetensors' if named else '.npy'}"


def check_targets(options: FuseOptions, output: str, force: bool) -> None:
    """Raises:
    UsageError, OutputError: a file cannot be written where an option says.
    """
    given = [
        options.image,
        options.text,
        options.weights,
        options.maps.image_file,
    ]
    inputs = [name for name in given if name not in (None, "none")]
    inputs += records_beside(options.weights or "")
    for mask in (options.image_mask, options.text_mask, options.attention_mask):
        if mask not in (None, "none"):
            inputs.append(file_and_key(str(mask))[0])
    if options.maps.tokens is not None:
        from fusecli.maps.token_labels import file_of

        inputs.append(file_of(options.maps.tokens))
    if options.maps.boxes not in (None, "none"):
        inputs.append(file_and_key(str(options.maps.boxes))[0])
    if output != "-":
        check_target(output, force, inputs, WRITABLE_ENDINGS)
    if options.maps.attention is not None:
        check_target(options.maps.attention, force, inputs, WRITABLE_ENDINGS)
    if options.maps.plot is not None:
        from fusecli.maps.picture import ENDINGS as PLOT_ENDINGS

        check_target(options.maps.plot, force, inputs, PLOT_ENDINGS)
    for path in options.reports:
        check_target(path, force, inputs, (".json",))


def check_options(options: FuseOptions, output: str) -> None:
    """Raises:
    UsageError: options that exclude each other, or a value that is not possible.
    """
    check_computing(options.device, options.dtype, options.engine)
    check_result(options.out_dtype, options.direction, options.pool)
    if [
        options.image,
        options.text,
        options.image_mask,
        options.text_mask,
        options.attention_mask,
    ].count("-") > 1:
        raise UsageError("only one of image, text and their masks can come from stdin")
    check_origin(options.weights, options.seed)
    one_only = output == "-" or output.lower().endswith(".npy")
    if one_only and (options.direction == BOTH or options.pool is not None):
        what = "--direction both" if options.direction == BOTH else f"--pool {options.pool}"
        raise UsageError(
            f"{output}: {what} gives more than one tensor, and .npy holds one: say -o "
            "FILE.safetensors or FILE.npz"
        )
    if options.out_dtype == "bfloat16" and not output.lower().endswith(".safetensors"):
        raise UsageError("--out-dtype bfloat16 needs -o FILE.safetensors: .npy has no bfloat16")
    options.maps.check()
    _refuse_one_name_for_two(options, output)
    if options.maps.plot is not None:
        from fusecli.maps.picture import require_matplotlib

        require_matplotlib()


def _refuse_one_name_for_two(options: FuseOptions, output: str) -> None:
    named = [
        ("the output", output),
        ("the attention", options.maps.attention),
        ("the plot", options.maps.plot),
    ]
    named += [("the report", path) for path in options.reports]
    seen: dict[str, tuple[str, str]] = {}
    for what, path in named:
        if path is None or path == "-":
            continue
        other, first = seen.setdefault(os.path.realpath(path), (what, path))
        if other != what:
            raise UsageError(f"{first}: is both {other} and {what}")
