"""`fusecli init`: write initial weights."""

from __future__ import annotations

from typing import Annotated

import typer

from fusecli.cli.progress import print_path


def init(
    output: Annotated[
        str, typer.Option("--output", "-o", help="Where the weights go: a .safetensors file.")
    ],
    dim: Annotated[int, typer.Option(help="Width D of the module.")] = 768,
    heads: Annotated[int, typer.Option(help="Attention heads H; divides D.")] = 8,
    image_dim: Annotated[
        int | None, typer.Option(help="Width of the image features. Default: --dim.")
    ] = None,
    text_dim: Annotated[
        int | None, typer.Option(help="Width of the text features. Default: --dim.")
    ] = None,
    residual: Annotated[bool, typer.Option("--residual", help="Add the projected text.")] = False,
    norm: Annotated[bool, typer.Option("--norm", help="LayerNorm over the result.")] = False,
    null_token: Annotated[
        bool, typer.Option("--null-token", help="One extra all-zero key and value.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write initial weights: those that `fuse --seed` uses, and torch gives for that seed.

    Prints the path of the file.
    """
    from fusecli.config import FusionConfig
    from fusecli.errors import UsageError
    from fusecli.initial import initial_weights
    from fusecli.weights import write_weights

    for option, size in (("--image-dim", image_dim), ("--text-dim", text_dim)):
        if size is not None and size < 1:
            raise UsageError(f"{option} must be at least 1, found {size}")
    config = FusionConfig(dim, heads, image_dim or 0, text_dim or 0, residual, norm, null_token)
    write_weights(output, config, initial_weights(config, seed), seed, force)
    print_path(output)
