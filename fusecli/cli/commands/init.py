"""`fusecli init`: write initial weights."""

from __future__ import annotations

from typing import Annotated

import typer

from fusecli.cli.options import (
    Alpha,
    Debug,
    FfnDim,
    Force,
    Gate,
    Layers,
    Method,
    ModuleHeads,
    Norm,
    NullToken,
    Residual,
)
from fusecli.cli.progress import print_path


def init(
    output: Annotated[
        str, typer.Option("--output", "-o", help="Where the weights go: a .safetensors file.")
    ],
    method: Method = None,
    dim: Annotated[int, typer.Option(help="Width D of the module.")] = 768,
    heads: ModuleHeads = None,
    image_dim: Annotated[
        int | None, typer.Option(help="Width of the image features. Default: --dim.")
    ] = None,
    text_dim: Annotated[
        int | None, typer.Option(help="Width of the text features. Default: --dim.")
    ] = None,
    residual: Residual = None,
    norm: Norm = None,
    null_token: NullToken = None,
    gate: Gate = None,
    alpha: Alpha = None,
    layers: Layers = None,
    ffn_dim: FfnDim = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write initial weights: those that `fuse --seed` uses, and torch gives for that seed.

    Of a transformer each layer draws its own, where torch copies the first. Prints the path
    of the file.
    """
    from fusecli.errors import UsageError
    from fusecli.fusion.initial_weights import initial_weights
    from fusecli.fusion.weights import ModuleOptions, write_weights

    for option, size in (("--image-dim", image_dim), ("--text-dim", text_dim)):
        if size is not None and size < 1:
            raise UsageError(f"{option} must be at least 1, found {size}")
    given = ModuleOptions(
        dim, heads, residual, norm, null_token, method, gate, alpha, layers, ffn_dim
    )
    config = given.config(image_dim or dim, text_dim or dim)
    write_weights(output, config, initial_weights(config, seed), seed, force)
    print_path(output)
