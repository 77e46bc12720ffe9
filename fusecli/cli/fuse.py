"""`fusecli fuse IMAGE TEXT`: one pair of files."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from fusecli.cli.progress import Progress, print_path

_FEATURES, _MODULE, _RUN, _RESULT = "Features", "Module", "Computing", "Result"


def fuse(
    image: Annotated[str, typer.Argument(help="Image features: a file, or - for .npy on stdin.")],
    text: Annotated[str, typer.Argument(help="Text features: a file, or - for .npy on stdin.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the result goes: .npy, .npz, .safetensors, or - for .npy on stdout. "
            "Default: the text's name with .fused.npy, in this folder.",
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(help="Width D of the module. Default: the text's, or the weights'."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads H. Default: 8, or the weights'.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights: .safetensors, .npz, .pt or .pth.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the initial weights, without --weights. Default: 0.")
    ] = None,
    residual: Annotated[
        bool | None, typer.Option("--residual/--no-residual", help="Add the projected text.")
    ] = None,
    norm: Annotated[
        bool | None, typer.Option("--norm/--no-norm", help="LayerNorm over the result.")
    ] = None,
    null_token: Annotated[
        bool | None,
        typer.Option(
            "--null-token/--no-null-token",
            help="One extra all-zero key and value, so that a single image token is weighed too.",
        ),
    ] = None,
    image_mask: Annotated[
        str | None, typer.Option(help="Image mask: 1 real, 0 padding; 'none' ignores a stored one.")
    ] = None,
    text_mask: Annotated[
        str | None, typer.Option(help="Text mask: 1 real, 0 padding; 'none' ignores a stored one.")
    ] = None,
    image_key: Annotated[
        str | None, typer.Option(help="Which tensor of a file with several is the image.")
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(help="Which tensor of a file with several is the text.")
    ] = None,
    image_axes: Annotated[
        str | None,
        typer.Option(help="What the image's axes are: D, PD, ND, NPD, DHW, HWD, NDHW, NHWD."),
    ] = None,
    text_axes: Annotated[
        str | None, typer.Option(help="What the text's axes are: D, TD, ND, NTD.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Type to compute in: float32, bfloat16, float16.")
    ] = "float32",
    engine: Annotated[
        str, typer.Option(help="auto, numpy (small CPU jobs, no torch import) or torch.")
    ] = "auto",
    out_dtype: Annotated[
        str, typer.Option(help="Type to write: float32, float16, bfloat16 (.safetensors).")
    ] = "float32",
    max_memory: Annotated[
        str | None, typer.Option(help="Bound on one chunk of a stack: 500M, 2G. Default: 192M.")
    ] = None,
    allow_empty_image: Annotated[
        bool, typer.Option("--allow-empty-image", help="An all-masked image: a context of zero.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Let NaN and infinity in the features pass.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing output.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail (exit 1, nothing written) if a diagnosis is made."),
    ] = False,
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
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No notes, warnings or progress on stderr.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Fuse an image's features into a text's, one fused vector per text token.

    Prints the path of the result. Both files may hold one pair (image [P, D] or one vector
    [D], text [T, D]) or a stack of them (image [N, P, D], text [N, T, D]).
    """
    from fusecli.errors import UsageError
    from fusecli.fuse import FuseOptions, fuse_files
    from fusecli.weights import Switches

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
        switches=Switches(dim, heads, residual, norm, null_token),
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
        reports=tuple(name for name in reports if name != "table"),
        provenance=bool(reports) or as_json,
        max_memory=None if max_memory is None else parse_bytes(max_memory),
    )
    # The table on stderr says what the warnings say.
    with Progress("fuse", quiet, warnings="table" not in reports) as progress:
        made = fuse_files(options, tell=progress.tell, progress=progress.update)
    if "table" in reports:
        from fusecli.render import print_report

        print_report(made)
    if as_json:
        sys.stdout.write(made.to_json())
    elif made.output["file"] != "-":
        print_path(made.output["file"])


def parse_bytes(text: str) -> int:
    """`500M`, `2G`, `1.5GiB` or plain bytes.

    Raises:
        UsageError: something else.
    """
    from fusecli.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise UsageError(f"--max-memory {text}: expected a size such as 500M or 2G")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))
