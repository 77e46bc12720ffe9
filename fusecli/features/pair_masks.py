"""The mask of one side of a pair: where it was found, what it says, and how it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.axes import Axes, Side, token_shapes
from fusecli.features.file import FeatureFile
from fusecli.features.mask_choice import the_mask_of
from fusecli.features.mask_names import MaskStyle, meaning_of, says_its_style
from fusecli.features.masks import read_mask, style_of
from fusecli.features.select import tensor_of
from fusecli.features.tensor import InMemory, StoredTensor
from fusecli.records import record

# Descriptions of masks in which 1 is not a real token.
_HOW: dict[MaskStyle, str] = {
    "padding": " (1 is padding)",
    "lengths": " (counts of real tokens)",
}
MaskOrigin = Literal["option", "beside the features", "manifest"]


@record
class UsedMask:
    """The mask of one side, as it was found and read.

    Attributes:
        side: whose tokens it marks.
        stored: where it lies.
        rows: bool `[N, tokens]`, or `[1, tokens]` for all samples; true is a real token.
        found: how it was found.
        style: the option that says what its numbers mean; None where its name or they themselves
            tell it.
    """

    side: Side
    stored: StoredTensor
    rows: NDArray[np.bool_]
    found: MaskOrigin
    style: MaskStyle | None = None

    @property
    def note(self) -> str | None:
        """The note about a mask that no option named, or whose name says how it is read."""
        named = meaning_of(self.stored.key, self.stored.file) is not None
        how = _HOW.get(self._style, "") if named else ""
        if self.found != "beside the features" and (not how or self.style is not None):
            return None
        return f"{self.stored.where} is used as the {self.side} mask{how}"

    @property
    def if_inverted(self) -> str:
        """The remedy for a mask that marks the wrong tokens, as the end of a sentence."""
        seems, remedy = self.remedy
        return "" if self._style in ("lengths", "additive") else f": if {seems}, {remedy}"

    @property
    def remedy(self) -> tuple[str, str]:
        """What a mask seems to be whose real tokens are the padding, and what to do about it."""
        beside = self.found == "beside the features"
        style = self._style
        if style == "lengths":
            return (
                "its counts are of other tokens than the first",
                "give the number of real tokens of each sample, which come first",
            )
        if style == "additive":
            return "its large negative numbers mark real tokens", "exchange the two numbers"
        if style == "padding":
            remedy = f"call it {self.side}_mask" if beside else "say --mask-style keep"
            return "the mask is 1 for real tokens", remedy
        # The name of a mask beside the features counts more than that option.
        key = self.stored.key
        named = beside and key is not None and says_its_style(key)
        remedy = f"call it {self.side}_padding_mask" if named else "say --mask-style padding"
        return "the mask is 1 for padding", remedy

    @property
    def _style(self) -> MaskStyle:
        """What the numbers were taken for."""
        return style_of(self.stored, self.rows, self.style)


def mask_in(file: FeatureFile, side: Side, key: str | None) -> StoredTensor:
    """The mask in a file of its own.

    Raises:
        FeatureFileError: no such tensor, or several that could be meant.
    """
    return the_mask_of(file, side) if key is None else tensor_of(file, key)


def use_mask(
    stored: StoredTensor,
    axes: Axes,
    N: int,
    found: MaskOrigin,
    style: MaskStyle | None = None,
    row_of: tuple[int, Axes] | None = None,
) -> UsedMask:
    """Read a mask; of a stack of masks only the row of its features.

    Args:
        stored: the mask.
        axes: of the features that are read.
        N: samples of the job.
        found: how it was found.
        style: what its numbers mean; the name of a mask beside the features counts more.
        row_of: the row that is read of the features, and the axes of their stack; None where the
            whole tensor is read.

    Raises:
        ShapeError: its shape is not that of the tokens.
        FeatureFileError: it holds something other than marks, or masks every text token.
    """
    if found == "beside the features" and stored.key is not None and says_its_style(stored.key):
        style = None
    if row_of is None:
        rows = read_mask(stored, axes, N, style)
    else:
        row, stack = row_of
        if stored.shape[:1] == (stack.samples,) and stored.shape not in token_shapes(axes):
            part = stored.raw_part(0, row, row + 1)
            cut = replace(stored, shape=part.shape, nbytes=part.nbytes, source=InMemory(part))
            rows = read_mask(cut, axes, 1, style)
        else:  # one mask for all samples, or an error that names the shapes of the whole stack
            rows = read_mask(stored, stack, stack.samples or 1, style)
    if axes.side == "text" and not rows.any():
        raise FeatureFileError(f"{stored.where}: masks every text token: there is nothing to fuse")
    return UsedMask(axes.side, stored, rows, found, style)
