"""`fusecli methods [IMAGE TEXT]`: the ways to fuse, side by side."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from fusecli.cli.options import (
    Debug,
    FfnDim,
    ImageAxes,
    ImageKey,
    Layers,
    ModuleHeads,
    TextAxes,
    TextKey,
)


def methods(
    image: Annotated[str | None, typer.Argument(help="Image features to take P and Di of.")] = None,
    text: Annotated[str | None, typer.Argument(help="Text features to take T and Dt of.")] = None,
    image_tokens: Annotated[
        int | None, typer.Option("--P", help="Image tokens, without files. Default: 197.")
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option("--T", help="Text tokens, without files. Default: 16.")
    ] = None,
    image_dim: Annotated[
        int | None, typer.Option(help="Width of the image features, without files. Default: 768.")
    ] = None,
    text_dim: Annotated[
        int | None, typer.Option(help="Width of the text features, without files. Default: 768.")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Width D of modules. Default: the text's.")
    ] = None,
    heads: ModuleHeads = None,
    layers: Layers = None,
    ffn_dim: FfnDim = None,
    image_key: ImageKey = None,
    text_key: TextKey = None,
    image_axes: ImageAxes = None,
    text_axes: TextAxes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Compare the ways to fuse: what each gives, needs and costs, for the shapes at hand.

    The shapes are those of two files, or of --P, --T, --image-dim and --text-dim. Columns: width
    of a fused vector; weights to train; if a text token gets the mean of all patches or one
    weighed for it; what of the text is in the result; multiply-adds of one pair in a long stack.
    """
    from fusecli.errors import UsageError
    from fusecli.fusion.compare import Shapes, compare_methods
    from fusecli.job.open import FuseOptions, pair_shapes

    sizes = {
        "--P": image_tokens,
        "--T": text_tokens,
        "--image-dim": image_dim,
        "--text-dim": text_dim,
        "--dim": dim,
    }
    module_sizes = {"--heads": heads, "--layers": layers, "--ffn-dim": ffn_dim}
    for option, size in (sizes | module_sizes).items():
        if size is not None and size < 1:
            raise UsageError(f"{option} must be at least 1, found {size}")
    if (image is None) != (text is None):
        raise UsageError("give both files, IMAGE and TEXT, or none")
    module = (dim, heads, layers, ffn_dim)
    if image is not None and text is not None:
        said = [option for option, size in sizes.items() if size is not None and option != "--dim"]
        if said:
            raise UsageError(f"{said[0]} is taken from the files: leave it out, or the files")
        found = pair_shapes(
            FuseOptions(
                image,
                text,
                image_key=image_key,
                text_key=text_key,
                image_axes=image_axes,
                text_axes=text_axes,
            )
        )
        shapes = Shapes(found.T, found.P, found.text.width, found.image.width, *module)
    else:
        shapes = Shapes(
            text_tokens or 16, image_tokens or 197, text_dim or 768, image_dim or 768, *module
        )
    rows = compare_methods(shapes)
    if as_json:
        data = {"shapes": asdict(shapes), "methods": [asdict(row) for row in rows]}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    from fusecli.cli.render import print_methods

    print_methods(shapes, rows)
