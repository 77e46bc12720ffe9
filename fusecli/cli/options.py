"""Options that several commands have, each declared once: type, names and help.

A command takes `heads: Heads = None`; where a default is one of the library's it is None here,
and the library's is stated in the help.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

# The module: what `fusecli init` writes and what `--weights` says.
Method = Annotated[
    str | None,
    typer.Option(
        help="How to fuse: attention (default), concat, sum or transformer; see fusecli methods. "
        "Concat and sum need no weights without --dim, and project to D with it."
    ),
]
ModuleHeads = Annotated[int | None, typer.Option(help="Attention heads H; divides D. Default: 8.")]
Residual = Annotated[
    bool | None,
    typer.Option("--residual/--no-residual", help="Add the projected text to the attention."),
]
Norm = Annotated[bool | None, typer.Option("--norm/--no-norm", help="LayerNorm over the result.")]
NullToken = Annotated[
    bool | None,
    typer.Option(
        "--null-token/--no-null-token",
        help="One extra all-zero key and value, so that a single image token is weighed too.",
    ),
]
Gate = Annotated[
    bool | None,
    typer.Option(
        "--gate/--no-gate",
        help="Add tanh(gate) times the attention to the text itself, which must be D wide; the "
        "gate starts at 0, so that the untrained module returns the text unchanged.",
    ),
]
Alpha = Annotated[
    float | None, typer.Option(help="The text's share of a sum, from 0 to 1. Default: 0.5.")
]
Layers = Annotated[int | None, typer.Option(help="Layers of a transformer. Default: 2.")]
FfnDim = Annotated[
    int | None, typer.Option(help="Inner width of a transformer's feed-forward. Default: 4 D.")
]

# The same module on a job.
Dim = Annotated[
    int | None, typer.Option(help="Width D of the module. Default: the text's, or the weights'.")
]
Heads = Annotated[
    int | None, typer.Option(help="Attention heads H; divides D. Default: 8, or the weights'.")
]
Weights = Annotated[str | None, typer.Option(help="Weights: .safetensors, .npz, .pt or .pth.")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of the initial weights, without --weights. Default: 0.")
]

Direction = Annotated[
    str,
    typer.Option(
        help="Whose tokens ask and get a fused vector each: text, image (same weights), or both "
        "(two tensors: fused_text and fused_image in .safetensors or .npz)."
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        help="Also one vector a pair, of the fused rows: mean, max or first, of real tokens "
        "(a second tensor, pooled, in .safetensors or .npz; of both, pooled_text and pooled_image)."
    ),
]

# Features.
ImageMask = Annotated[
    str | None, typer.Option(help="Image mask: 1 real, 0 padding; 'none' ignores a stored one.")
]
TextMask = Annotated[
    str | None, typer.Option(help="Text mask: 1 real, 0 padding; 'none' ignores a stored one.")
]
ImageKey = Annotated[
    str | None, typer.Option(help="Which tensor of a file with several is the image.")
]
TextKey = Annotated[
    str | None, typer.Option(help="Which tensor of a file with several is the text.")
]
ImageAxes = Annotated[
    str | None,
    typer.Option(help="What the image's axes are: D, PD, ND, NPD, DHW, HWD, NDHW, NHWD."),
]
TextAxes = Annotated[str | None, typer.Option(help="What the text's axes are: D, TD, ND, NTD.")]
AllowEmptyImage = Annotated[
    bool,
    typer.Option(
        "--allow-empty-image",
        help="An all-masked image (or text, where the image asks): a context of zero.",
    ),
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Let NaN and infinity in the features pass.")
]

# Computing.
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="Type to compute in: float32, bfloat16, float16.")]
Engine = Annotated[
    str, typer.Option(help="numpy, torch or auto: numpy in float32 on the CPU, else torch.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Bound on what of a stack is in memory: 500M, 2G. Default: 96M a core."),
]

# Results, and what is said.
OutDtype = Annotated[
    str, typer.Option(help="Type to write: float32, float16, bfloat16 (.safetensors).")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail (exit 1, nothing written) if a diagnosis is made.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes, warnings or progress on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def parse_bytes(text: str, option: str = "--max-memory") -> int:
    """`500M`, `2G`, `1.5GiB` or plain bytes.

    Args:
        text: what the option says.
        option: its name, for the error.

    Raises:
        UsageError: something else.
    """
    from fusecli.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise UsageError(f"{option} {text}: expected a size such as 500M or 2G")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))
