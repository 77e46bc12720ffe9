"""`fusecli fuse IMAGE TEXT`: one pair of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fusecli.cli.options import (
    AllowEmptyImage,
    AllowNonfinite,
    Alpha,
    Debug,
    Device,
    Dim,
    Direction,
    Dtype,
    Engine,
    FfnDim,
    Force,
    Gate,
    Heads,
    ImageAxes,
    ImageKey,
    ImageMask,
    Layers,
    MaxMemory,
    Method,
    Norm,
    NullToken,
    OutDtype,
    Pool,
    Quiet,
    Residual,
    Seed,
    Strict,
    TextAxes,
    TextKey,
    TextMask,
    Weights,
    parse_bytes,
)
from fusecli.cli.progress import Progress, print_about, print_path

if TYPE_CHECKING:
    from fusecli.maps.view import AttentionView


def fuse(
    image: Annotated[str, typer.Argument(help="Image features: a file, or - for .npy on stdin.")],
    text: Annotated[str, typer.Argument(help="Text features: a file, or - for .npy on stdin.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the result goes: .npy, .npz, .safetensors, or - for .npy on stdout. "
            "Default: the text's name with .fused.npy (.fused.safetensors where there are several "
            "tensors), in this folder.",
        ),
    ] = None,
    method: Method = None,
    dim: Dim = None,
    heads: Heads = None,
    weights: Weights = None,
    seed: Seed = None,
    residual: Residual = None,
    norm: Norm = None,
    null_token: NullToken = None,
    gate: Gate = None,
    alpha: Alpha = None,
    layers: Layers = None,
    ffn_dim: FfnDim = None,
    direction: Direction = "text",
    pool: Pool = None,
    image_mask: ImageMask = None,
    text_mask: TextMask = None,
    image_key: ImageKey = None,
    text_key: TextKey = None,
    image_axes: ImageAxes = None,
    text_axes: TextAxes = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    engine: Engine = "auto",
    out_dtype: OutDtype = "float32",
    max_memory: MaxMemory = None,
    allow_empty_image: AllowEmptyImage = False,
    allow_nonfinite: AllowNonfinite = False,
    attention: Annotated[
        str | None,
        typer.Option(
            help="Write the attention weights, [T, P], the heads' mean: .npy, .npz, .safetensors."
        ),
    ] = None,
    per_head: Annotated[
        bool, typer.Option("--per-head", help="Every head's weights in --attention, [H, T, P].")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(help="Draw the attention: .png, .svg or .pdf. Needs fusecli[plot]."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Draw the attention in the terminal, on stderr.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(help="Which pair of a stack is drawn. Default: 0, the first.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="How image tokens lie in the picture: 14x14, with +K for K tokens before the "
            "grid, or none. Default: a square, with or without a class token before it."
        ),
    ] = None,
    image_file: Annotated[
        str | None, typer.Option(help="The photo that --plot lays the attention over.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="The text's tokens, to name the rows: a .txt of one a line, a .json list, or "
            "FILE.json:NAME of several."
        ),
    ] = None,
    force: Force = False,
    strict: Strict = False,
    report: Annotated[
        list[str] | None,
        typer.Option(
            help="The shape report: alone as a table on stderr, with FILE.json into that file.",
            metavar="[FILE.json]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout, not the path.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fuse an image's features into a text's, one fused vector per text token.

    Prints the path of the result. Both files may hold one pair (image [P, D] or one vector
    [D], text [T, D]) or a stack of them (image [N, P, D], text [N, T, D]).
    """
    from fusecli.errors import UsageError
    from fusecli.fusion.weights import ModuleOptions
    from fusecli.job.run import FuseOptions, MapOptions, fuse_files

    reports = report or []
    for name in reports:
        if name != "table" and not name.lower().endswith(".json"):
            raise UsageError(f"--report {name}: expected a name ending in .json, or none")
    if as_json and output == "-":
        raise UsageError("--json and -o - both want stdout: write one of them to a file")
    options = FuseOptions(
        image=image,
        text=text,
        output=output,
        switches=ModuleOptions(
            dim, heads, residual, norm, null_token, method, gate, alpha, layers, ffn_dim
        ),
        direction=direction,
        pool=pool,
        device=device,
        dtype=dtype,
        engine=engine,
        weights=weights,
        seed=seed,
        image_mask=image_mask,
        text_mask=text_mask,
        image_key=image_key,
        text_key=text_key,
        image_axes=image_axes,
        text_axes=text_axes,
        out_dtype=out_dtype,
        force=force,
        strict=strict,
        allow_empty_image=allow_empty_image,
        allow_nonfinite=allow_nonfinite,
        maps=MapOptions(attention, per_head, plot, show, sample, grid, image_file, tokens),
        reports=tuple(name for name in reports if name != "table"),
        provenance=bool(reports) or as_json,
        max_memory=None if max_memory is None else parse_bytes(max_memory),
    )
    # The table on stderr says what the warnings say.
    views: list[AttentionView] = []
    with Progress("fuse", quiet, warnings="table" not in reports) as progress:
        made = fuse_files(options, progress.tell, progress.update, views.append)
    if "table" in reports:
        from fusecli.cli.render import print_report

        print_report(made)
    for view in views:
        from fusecli.cli.render import print_map

        print_map(view)
    if as_json:
        print_about(made.output["file"], made.to_json().encode())
    elif made.output["file"] != "-":
        print_path(made.output["file"])
