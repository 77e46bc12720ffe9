"""The options about many pairs, which batch, train, evaluate and predict share."""

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fusecli.cli.option_groups import Reading
from fusecli.cli.options import OptionGroup, option_group

if TYPE_CHECKING:
    from fusecli.features.pair_inputs import ReadOptions
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
