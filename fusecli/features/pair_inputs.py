"""The two inputs of a pair: their tensors, and what their axes mean.

`fuse`, `batch` and a training all read a pair in these steps. Nothing here knows a fusion method
or where pairs come from, and of the features themselves nothing but headers is read.
Masks are in `pair_masks.py`, which jobs without a mask do not import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fusecli.errors import ShapeError, UsageError, shortened
from fusecli.features.axes import Axes, Side, read_axes
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import MaskStyle
from fusecli.features.notes import Note
from fusecli.features.pair_shapes import PairShapes, match_pair
from fusecli.features.select import (
    choose_tensor,
    is_usual_name,
    notes_on_tensors,
)
from fusecli.features.tensor import StoredTensor
from fusecli.records import open_record, record

if TYPE_CHECKING:
    from fusecli.features.pair_masks import UsedMask

_ALL_LAYERS = "hidden_states"


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
    def sides(self) -> tuple[SideInput, SideInput]:
        """Image and text."""
        return self.image, self.text

    @property
    def two_tensors(self) -> bool:
        """Both sides are tensors of one file, so that a bare `attention_mask` is the text's."""
        return self.image.file is self.text.file and self.image.stored.key != self.text.stored.key

    def other_key(self, side: Side) -> str | None:
        """The key of the other side's features, where they are another tensor of the same file."""
        other = self.text if side == "image" else self.image
        return other.stored.key if self.two_tensors else None


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
        exchanged: what to do where the image is as wide as the text should be, and the text as
            wide as the image should be.
    """

    image_dim: int
    text_dim: int
    module: str
    remedy: str
    exchanged: str


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
    notes: list[str] = []
    if any(_ALL_LAYERS in (given.stored.key or given.stored.file) for given in inputs.sides):
        from fusecli.features.layers import InputAxes, notes_on_layers

        both = zip(inputs.sides, (image, text), strict=True)
        notes = notes_on_layers([InputAxes(side.file, side.stored, axes) for side, axes in both])
    shapes = match_pair(image, text, inputs.image.where, inputs.text.where)
    if notes:
        shapes = replace(shapes, notes=(*shapes.notes, *notes))
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
    if (shapes.image.width, shapes.text.width) == (expected.text_dim, expected.image_dim):
        remedy = f"the two widths are exchanged: {expected.exchanged}"
        if inputs.two_tensors:
            keys = f"--image-key {inputs.text.stored.key} --text-key {inputs.image.stored.key}"
            remedy = f"the two widths are exchanged: say {keys}"
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
    if named is None and _ALL_LAYERS in (stored.key or stored.file) and given.row is None:
        from fusecli.features.layers import refuse_layers

        refuse_layers(side, given.file, stored)
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


def is_an_id(key: str | None, row: int | None) -> bool:
    """Whether the key of a tensor that a source of pairs names is one of many in its file.

    A file by pair id holds the tensors of other pairs too. Where a row is read, or the key is one
    that encoders give (`image_features`), the other tensors belong to these features.
    """
    return key is not None and row is None and ("." in key or not is_usual_name(key))


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
            from fusecli.features.quantized import note_on_scale, scale_keys

            both = given.stored.key in roles
            roles[given.stored.key] = "image and the text" if both else side
            for key in scale_keys(given.stored):
                roles.setdefault(key, f"{side}'s scale or zero point")
            notes += [Note("dequantized", note) for note in note_on_scale(given.stored)]
        if mask is not None and mask.found == "beside the features" and mask.stored.key:
            roles.setdefault(mask.stored.key, f"{side} mask")
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
