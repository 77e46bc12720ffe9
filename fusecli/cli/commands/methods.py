"""`fusecli methods [IMAGE TEXT]`: the ways to fuse, side by side."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.cli.option_groups import JsonProgram, ModuleSizes, Tensors
from fusecli.cli.options import OptionGroup, option_group

if TYPE_CHECKING:
    from fusecli.fusion.compare import Shapes


@option_group
class OptionalPair(OptionGroup):
    """Two files, or the sizes that would be read from them."""

    heading: ClassVar[str] = "Input"
    image: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", help="Image features; P and Di are taken from them."),
    ] = None
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="Text features; T and Dt are taken from them."),
    ] = None
    image_tokens: Annotated[
        int | None,
        typer.Option("--P", metavar="N", help="Image tokens, without files.", show_default="197"),
    ] = None
    text_tokens: Annotated[
        int | None,
        typer.Option("--T", metavar="N", help="Text tokens, without files.", show_default="16"),
    ] = None
    image_dim: Annotated[
        int | None,
        typer.Option(
            metavar="DI", help="Width of the image features, without files.", show_default="768"
        ),
    ] = None
    text_dim: Annotated[
        int | None,
        typer.Option(
            metavar="DT", help="Width of the text features, without files.", show_default="768"
        ),
    ] = None

    @property
    def sizes(self) -> dict[str, int | None]:
        """The sizes that are taken from the files where there are files, by option."""
        return {
            "--P": self.image_tokens,
            "--T": self.text_tokens,
            "--image-dim": self.image_dim,
            "--text-dim": self.text_dim,
        }


@option_group
class MethodsInput(Tensors, OptionalPair):
    """All of the input."""


def methods(inputs: MethodsInput, modules: ModuleSizes, program: JsonProgram) -> None:
    """Compare the ways to fuse: what each gives, needs and costs, for your shapes.

    The shapes are those of two files, or of --P, --T, --image-dim and --text-dim. Columns: width
    of a fused vector; number of weights to train; whether a text token gets the mean of all
    image tokens or a mean weighted for it; what of the text is in the result; multiply-adds of
    one pair in a long stack.
    """
    from fusecli.fusion.compare import compare_methods

    shapes = _shapes(inputs, modules)
    rows = compare_methods(shapes)
    if program.as_json:
        data = {"shapes": asdict(shapes), "methods": [asdict(row) for row in rows]}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    from fusecli.cli.tables import print_methods

    print_methods(shapes, rows)


def _shapes(inputs: MethodsInput, modules: ModuleSizes) -> "Shapes":
    from fusecli.errors import UsageError
    from fusecli.fusion.compare import Shapes
    from fusecli.job.open import pair_shapes
    from fusecli.job.options import FuseOptions

    module_sizes = {
        "--dim": modules.dim,
        "--heads": modules.heads,
        "--layers": modules.layers,
        "--ffn-dim": modules.ffn_dim,
        "--rank": modules.rank,
    }
    for option, size in (inputs.sizes | module_sizes).items():
        if size is not None and size < 1:
            raise UsageError(f"{option} must be at least 1, found {size}")
    if (inputs.image is None) != (inputs.text is None):
        raise UsageError("give both files, IMAGE and TEXT, or none")
    module = (modules.dim, modules.heads, modules.layers, modules.ffn_dim, modules.rank)
    if inputs.image is None or inputs.text is None:
        return Shapes(
            inputs.text_tokens or 16,
            inputs.image_tokens or 197,
            inputs.text_dim or 768,
            inputs.image_dim or 768,
            *module,
        )
    for option, size in inputs.sizes.items():
        if size is not None:
            raise UsageError(f"{option} is taken from the files: leave it out, or the files")
    pair = pair_shapes(
        FuseOptions(
            inputs.image,
            inputs.text,
            image_key=inputs.image_key,
            text_key=inputs.text_key,
            image_axes=inputs.image_axes,
            text_axes=inputs.text_axes,
        )
    )
    return Shapes(pair.T, pair.P, pair.text.width, pair.image.width, *module)
