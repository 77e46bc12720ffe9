"""The two inputs of a pair: their tensors, what their axes mean, their masks.

`fuse`, `batch` and a training all read a pair in these steps. Nothing here knows a fusion method
or where pairs come from, and of the features themselves nothing but headers is read. The modules
on masks are imported by the functions that need them: most small jobs have no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError, UsageError, shortened
from fusecli.features.axes import Axes, PairShapes, Side, match_pair, read_axes, token_shapes
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import MaskStyle, meaning_of, says_its_style
from fusecli.features.notes import Note
from fusecli.features.select import (
    choose_tensor,
    is_usual_name,
    note_on_scale,
    notes_on_tensors,
    scale_keys,
    tensor_of,
)
from fusecli.features.tensor import InMemory, StoredTensor
from fusecli.records import open_record, record

# Descriptions of masks in which 1 is not a real token.
_HOW: dict[MaskStyle, str] = {
    "padding": " (1 is padding)",
    "lengths": " (counts of real tokens)",
}
MaskOrigin = Literal["option", "beside the features", "manifest"]


@record
class ReadOptions:
    """How the files of a pair are read; the meanings are those of the options of that name.

    Attributes:
        image_key, text_key: keys of the tensors; None goes by the usual names.
        image_axes, text_axes: a letter for each axis; None goes by the number of axes.
        image_mask, text_mask: false ignores masks, stored beside the features or listed.
        allow_empty_image: accept pairs without a real token to attend to.
        allow_nonfinite: accept NaN and infinity.
        allow_integers: whole numbers without a scale are features.
        mask_style: what the numbers of masks mean whose names do not say it.
    """

    image_key: str | None = None
    text_key: str | None = None
    image_axes: str | None = None
    text_axes: str | None = None
    image_mask: bool = True
    text_mask: bool = True
    allow_empty_image: bool = False
    allow_nonfinite: bool = False
    allow_integers: bool = False
    mask_style: MaskStyle | None = None


@open_record
class SideInput:
    """One side of a pair in its open file.

    Attributes:
        file: the open file.
        stored: the tensor chosen in it.
        row: the one sample that is read of a stack; None reads the whole tensor.
    """

    file: FeatureFile
    stored: StoredTensor
    row: int | None = None

    @property
    def where(self) -> str:
        """File, key and row, for messages."""
        return self.stored.where if self.row is None else f"{self.stored.where} row {self.row}"


@open_record
class PairInputs:
    """Both sides of a pair in their open files; the same file where it holds both."""

    image: SideInput
    text: SideInput

    @property
    def two_tensors(self) -> bool:
        """Both sides are tensors of one file, so that a bare `attention_mask` is the text's."""
        return self.image.file is self.text.file and self.image.stored.key != self.text.stored.key


@record
class MatchedInputs:
    """How the two sides belong together, from their shapes alone.

    Attributes:
        shapes: of what is read, without the axis that a row was cut from.
        image_stack, text_stack: the axes of the whole tensor that a row is cut from, or None.
    """

    shapes: PairShapes
    image_stack: Axes | None = None
    text_stack: Axes | None = None


@record
class ExpectedWidths:
    """The widths that a module takes.

    Attributes:
        image_dim, text_dim: Di and Dt.
        module: what fixed them, for errors.
        remedy: what to do about others, for errors, with `{image_dim}` and `{text_dim}` for the
            widths that were found.
    """

    image_dim: int
    text_dim: int
    module: str
    remedy: str


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
        from fusecli.features.masks import style_of

        return style_of(self.stored, self.rows, self.style)


def choose_input(
    file: FeatureFile,
    side: Side,
    key: str | None,
    row: int | None,
    allow_integers: bool = False,
) -> SideInput:
    """The tensor of one side in an open file.

    Args:
        file: the open file.
        side: which side.
        key: the tensor's key, or None: by the usual names.
        row: the sample of a stack that is read, or None for the whole tensor.
        allow_integers: whole numbers without a scale are features.

    Raises:
        FeatureFileError: no such tensor, several that could be meant, or no features.
    """
    return SideInput(file, choose_tensor(file, side, key, allow_integers), row)


def match_inputs(inputs: PairInputs, options: ReadOptions) -> MatchedInputs:
    """Name the axes of both sides, cut the rows of stacks, and match what is left.

    Args:
        inputs: both sides.
        options: the axes that were named.

    Raises:
        ShapeError: a shape has no meaning, a row is out of range, or the sides do not match.
        UsageError: the named axes are not possible.
    """
    image, image_stack = _axes_of("image", inputs.image, options.image_axes)
    text, text_stack = _axes_of("text", inputs.text, options.text_axes)
    shapes = match_pair(image, text, inputs.image.where, inputs.text.where)
    return MatchedInputs(shapes, image_stack, text_stack)


def check_widths(shapes: PairShapes, inputs: PairInputs, expected: ExpectedWidths) -> None:
    """Raises:
    ShapeError: a feature is not as wide as the module takes it.
    """
    sides = ((shapes.image, expected.image_dim), (shapes.text, expected.text_dim))
    wrong = [(axes, wanted) for axes, wanted in sides if axes.width != wanted]
    if not wrong:
        return
    remedy = expected.remedy.format(image_dim=shapes.image.width, text_dim=shapes.text.width)
    for axes, wanted in wrong:
        before = axes.letters[-2:-1]
        if axes.letters.endswith("D") and before and axes.size(before) == wanted:
            swapped = f"{axes.letters[:-2]}D{before}"
            remedy = f"if its axes are swapped say --{axes.side}-axes {swapped}, else {remedy}"
    raise ShapeError(
        f"image {inputs.image.where} {list(shapes.image.shape)} is {shapes.image.width} wide and "
        f"text {inputs.text.where} {list(shapes.text.shape)} is {shapes.text.width} wide, but "
        f"{expected.module} takes {expected.image_dim} and {expected.text_dim}: {remedy}"
    )


def _axes_of(side: Side, given: SideInput, named: str | None) -> tuple[Axes, Axes | None]:
    """The axes of what is read, and those of the stack it is cut from."""
    stored = given.stored
    if named is None and "hidden_states" in (stored.key or stored.file) and given.row is None:
        from fusecli.features.layers import refuse_layers

        refuse_layers(side, stored)
    if given.row is None:
        return read_axes(side, stored.shape, named, stored.where), None
    if named is None and len(stored.shape) == 2:
        named = "ND"  # a row of two axes is a vector a sample
    stack = read_axes(side, stored.shape, named, stored.where)
    if stack.samples is None:
        raise UsageError(
            f"{stored.where}: {side}_row {given.row} needs an axis of samples, and "
            f"{list(stored.shape)} is read as {stack.letters}: name it N with --{side}-axes"
        )
    check_row(side, given, stack.samples)
    axis = stack.letters.index("N")
    shape = stack.shape[:axis] + stack.shape[axis + 1 :]
    return Axes(side, stack.letters.replace("N", ""), shape, f"a row of {stack.letters}"), stack


def check_row(side: Side, given: SideInput, samples: int) -> None:
    """Raises:
    ShapeError: the stack has no such row.
    """
    if given.row is not None and given.row >= samples:
        raise ShapeError(
            f"{given.stored.where}: has no {side}_row {given.row}: {list(given.stored.shape)} "
            f"holds {samples} samples, rows 0 to {samples - 1}{_samples_elsewhere(side, given)}"
        )


def _samples_elsewhere(side: Side, given: SideInput) -> str:
    """Of a row that the second axis has and the first has not, as the end of a sentence."""
    shape, row = given.stored.shape, given.row or 0
    if len(shape) != 3 or row >= shape[1]:
        return ""
    token = "P" if side == "image" else "T"
    return (
        "; if the samples lie in its second axis (torch's layout without batch_first) say "
        f"--{side}-axes {token}ND"
    )


def mask_beside(
    given: SideInput,
    axes: Axes,
    N: int,
    two_tensors: bool,
    style: MaskStyle | None = None,
    by_name_only: bool = False,
) -> StoredTensor | None:
    """The mask stored beside the features of one side; None where there is none.

    Args:
        given: the features.
        axes: of the features, of the whole stack where rows of it are read.
        N: samples in them.
        two_tensors: both sides' features are tensors of this file.
        style: the meaning of the numbers, for masks whose names do not say it.
        by_name_only: the file holds tensors of many pairs.

    Raises:
        FeatureFileError: a tensor has the shape and the numbers of a mask, and neither its name
            nor the style says what they mean.
    """
    if len(given.file.tensors) == 1:
        return None
    from fusecli.features.mask_choice import MaskSearch, choose_mask

    key = given.stored.key
    return choose_mask(MaskSearch(given.file, key, axes, N, two_tensors, by_name_only), style)


def is_an_id(key: str | None, row: int | None) -> bool:
    """Whether the key of a tensor that a source of pairs names is one of many in its file.

    A file by pair id holds the tensors of other pairs too. Where a row is read, or the key is one
    that encoders give (`image_features`), the other tensors belong to these features.
    """
    return key is not None and row is None and ("." in key or not is_usual_name(key))


def mask_in(file: FeatureFile, side: Side, key: str | None) -> StoredTensor:
    """The mask in a file of its own.

    Raises:
        FeatureFileError: no such tensor, or several that could be meant.
    """
    if key is not None:
        return tensor_of(file, key)
    from fusecli.features.mask_choice import the_mask_of

    return the_mask_of(file, side)


def notes_on_inputs(
    inputs: PairInputs,
    masks: Sequence[UsedMask | None],
    boxes: str | None = None,
    by_id: tuple[bool, bool] = (False, False),
) -> list[Note]:
    """Which tensor of a file of several is used as what, and which are not used.

    Args:
        inputs: both sides.
        masks: of the image and of the text.
        boxes: key of the boxes beside the image features that a picture uses.
        by_id: the file of the image, and that of the text, holds tensors of many pairs, of which
            nothing is said here.
    """
    notes: list[Note] = []
    used: dict[int, tuple[FeatureFile, dict[str, str]]] = {}
    others: set[int] = set()  # files whose other tensors are of other pairs
    sides: tuple[tuple[Side, SideInput], ...] = (("image", inputs.image), ("text", inputs.text))
    for (side, given), mask, of_many in zip(sides, masks, by_id, strict=True):
        if of_many:
            others.add(id(given.file))
        _, roles = used.setdefault(id(given.file), (given.file, {}))
        if given.stored.key is not None:
            both = given.stored.key in roles
            roles[given.stored.key] = "image and the text" if both else side
        for key in scale_keys(given.stored):
            roles.setdefault(key, f"{side}'s scale or zero point")
        if mask is not None and mask.found == "beside the features" and mask.stored.key:
            roles.setdefault(mask.stored.key, f"{side} mask")
        notes += [Note("dequantized", note) for note in note_on_scale(given.stored)]
    for mask in masks:
        if mask is None or mask.found == "beside the features" or mask.stored.key is None:
            continue
        for file, roles in used.values():  # `--text-mask FILE:KEY` of the features' own file
            if file.name == mask.stored.file:
                roles.setdefault(mask.stored.key, f"{mask.side} mask")
    if boxes is not None:
        used[id(inputs.image.file)][1].setdefault(boxes, "regions' boxes")
    for file, roles in used.values():
        if id(file) in others:
            continue
        code = f"tensors-used: {', '.join(shortened(key, 40) for key in roles)}"
        notes += [Note(code, note) for note in notes_on_tensors(file, roles)]
    return notes


def use_mask(
    stored: StoredTensor,
    axes: Axes,
    N: int,
    found: MaskOrigin,
    row: int | None = None,
    stack: Axes | None = None,
    style: MaskStyle | None = None,
) -> UsedMask:
    """Read a mask; of a stack of masks only the row of its features.

    Args:
        stored: the mask.
        axes: of the features that are read.
        N: samples of the job.
        found: how it was found.
        row: the row that is cut from the features' stack, or None.
        stack: the axes of that stack.
        style: what its numbers mean; of a mask beside the features its name says it, where it
            does.

    Raises:
        ShapeError: its shape is not that of the tokens.
        FeatureFileError: it holds something other than marks, or masks every text token.
    """
    from fusecli.features.masks import read_mask

    if found == "beside the features" and stored.key is not None and says_its_style(stored.key):
        style = None
    if row is None or stack is None:
        rows = read_mask(stored, axes, N, style)
    elif stored.shape[:1] == (stack.samples,) and stored.shape not in token_shapes(axes):
        part = stored.raw_part(0, row, row + 1)
        cut = replace(stored, shape=part.shape, nbytes=part.nbytes, source=InMemory(part))
        rows = read_mask(cut, axes, 1, style)
    else:  # one mask for all samples, or an error that names the shapes of the whole stack
        rows = read_mask(stored, stack, stack.samples or 1, style)
    if axes.side == "text" and not rows.any():
        raise FeatureFileError(f"{stored.where}: masks every text token: there is nothing to fuse")
    return UsedMask(axes.side, stored, rows, found, style)
