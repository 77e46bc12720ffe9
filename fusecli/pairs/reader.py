"""Pairs read from their files one at a time, in any order, by any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import ShapeError
from fusecli.features.axes import Axes, Side
from fusecli.features.file_cache import Opener, raw_row
from fusecli.features.mask_choice import MaskSearch, choose_mask
from fusecli.features.notes import Note
from fusecli.features.pair_inputs import (
    MatchedInputs,
    PairInputs,
    ReadOptions,
    SideInput,
    check_row,
    choose_input,
    is_an_id,
    match_inputs,
    notes_on_inputs,
)
from fusecli.features.pair_masks import UsedMask, mask_in, use_mask
from fusecli.features.pair_shapes import PairShapes
from fusecli.features.quantized import scale_keys
from fusecli.features.token_reader import (
    NEARLY_ZERO,
    RowStatistics,
    TokenReader,
    largest_whole,
)
from fusecli.pairs.pair import Pair, Place

if TYPE_CHECKING:
    from fusecli.features.attention_mask import AttentionMask

# Squared lengths above this are near the end of float32: they are left to the slower way.
_LARGE = 1e38
_KEPT_SHAPES = 4096

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class SideFeatures:
    """One side of a pair, read.

    Attributes:
        tokens: `[tokens, width]`, float32; masked tokens are zero.
        mask: bool `[tokens]`, true for real tokens; None if all are real.
        place: where the features lie.
        key: of the tensor that was chosen; None in a file of one nameless tensor.
        rows: lengths of the real tokens.
        used_mask: the mask that was found, also one that marks every token as real.
    """

    tokens: NDArray[np.float32]
    mask: Mask | None
    place: Place
    key: str | None
    rows: RowStatistics
    used_mask: UsedMask | None

    @property
    def where(self) -> str:
        """File, key and row, for messages."""
        keyed = self.place.file if self.key is None else f"{self.place.file}[{self.key}]"
        return keyed if self.place.row is None else f"{keyed} row {self.place.row}"


@dataclass(slots=True)
class PairFeatures:
    """One pair, read, converted and checked.

    Attributes:
        shapes: what the axes of both sides mean; one object for all pairs of the same shapes.
        image_side, text_side: what was read.
        stacks: the axes of the whole tensors that rows are cut from, or None, of the image and of
            the text.
        notes: which tensors of files of several were used, and which were not.
        attention: which text token may attend to which image token; None if all may.
    """

    shapes: PairShapes
    image_side: SideFeatures
    text_side: SideFeatures
    stacks: tuple[Axes | None, Axes | None] = (None, None)
    notes: Sequence[Note] = ()
    attention: AttentionMask | None = None

    @property
    def image(self) -> NDArray[np.float32]:
        """`[P, Di]`; masked tokens are zero."""
        return self.image_side.tokens

    @property
    def text(self) -> NDArray[np.float32]:
        """`[T, Dt]`; masked tokens are zero."""
        return self.text_side.tokens

    @property
    def image_mask(self) -> Mask | None:
        """Bool `[P]`, or None if all tokens are real."""
        return self.image_side.mask

    @property
    def text_mask(self) -> Mask | None:
        """Bool `[T]`, or None if all tokens are real."""
        return self.text_side.mask

    @property
    def nbytes(self) -> int:
        """Of the numbers."""
        return self.image.nbytes + self.text.nbytes


@dataclass(frozen=True, slots=True)
class _Known:
    """What follows from the shapes of both sides alone.

    Attributes:
        matched: what the axes mean.
        flat: tokens and width of each side, where its axes are in this order already.
    """

    matched: MatchedInputs
    image_flat: tuple[int, int] | None
    text_flat: tuple[int, int] | None


class PairReader:
    """Reads pairs; several threads may, in any order.

    Args:
        options: how files are read.
        check: called with the shapes and inputs of a pair whose shapes were not seen before;
            raises a FuseError to refuse them before any numbers are read.
    """

    def __init__(
        self,
        options: ReadOptions,
        check: Callable[[PairShapes, PairInputs], None] = lambda shapes, inputs: None,
    ) -> None:
        self._options, self._check = options, check
        self._known: dict[object, _Known] = {}
        self._files = Opener()

    def close(self) -> None:
        """Close the files that are kept open; reading opens them again."""
        self._files.close()

    def shapes(self, pair: Pair) -> PairShapes:
        """How the two sides of a pair belong together, from their headers.

        Raises:
            FuseError: the headers do not tell how the pair is to be read; names the file.
        """
        with ExitStack() as stack:
            return self._match(self._open(pair, stack)).matched.shapes

    def read(self, pair: Pair) -> PairFeatures:
        """Read, convert and check both sides.

        Raises:
            FuseError: why this pair cannot be read; names the file.
        """
        o = self._options
        with ExitStack() as stack:
            inputs = self._open(pair, stack)
            known = self._match(inputs)
            matched, shapes = known.matched, known.matched.shapes
            image_mask = text_mask = None
            if o.image_mask and (pair.image_mask or len(inputs.image.file.tensors) > 1):
                axes = shapes.image, matched.image_stack
                image_mask = self._mask(inputs, "image", axes, pair.image, pair.image_mask)
            if o.text_mask and (pair.text_mask or len(inputs.text.file.tensors) > 1):
                axes = shapes.text, matched.text_stack
                text_mask = self._mask(inputs, "text", axes, pair.text, pair.text_mask)
            image = _raw(inputs.image, matched.image_stack)
            text = _raw(inputs.text, matched.text_stack)
            notes = _notes(pair, inputs, image_mask, text_mask)
            attention = self._attention(pair, inputs, matched) if pair.attention_mask else None
        return PairFeatures(
            shapes,
            self._side(inputs.image, shapes.image, known.image_flat, pair.image, image_mask, image),
            self._side(inputs.text, shapes.text, known.text_flat, pair.text, text_mask, text),
            (matched.image_stack, matched.text_stack),
            notes,
            attention,
        )

    def _open(self, pair: Pair, stack: ExitStack) -> PairInputs:
        """Both sides, open as long as `stack` lasts; headers are read."""
        image, text, o = pair.image, pair.text, self._options
        if image.file == text.file:
            part = image.row is not None or text.row is not None
            image_file = text_file = self._files.open(image.file, image.key, stack, part)
        else:
            image_file = self._files.open(image.file, image.key, stack, image.row is not None)
            text_file = self._files.open(text.file, text.key, stack, text.row is not None)
        whole = o.allow_integers
        return PairInputs(
            choose_input(image_file, "image", image.key or o.image_key, image.row, whole),
            choose_input(text_file, "text", text.key or o.text_key, text.row, whole),
        )

    def _match(self, inputs: PairInputs) -> _Known:
        image, text = inputs.image, inputs.text
        key = image.stored.shape, text.stored.shape, image.row is None, text.row is None
        known = self._known.get(key)
        if known is not None:
            if image.row is not None or text.row is not None:
                _check_rows(inputs, known.matched)
            return known
        matched = match_inputs(inputs, self._options)
        shapes = matched.shapes
        if shapes.N != 1:
            many = image if shapes.text_shared else text
            raise ShapeError(
                f"{many.where}: {list(many.stored.shape)} holds {shapes.N} samples, expected the "
                "tokens of one: `fusecli fuse` takes stacks, and a manifest with the columns "
                "image_row and text_row takes their rows"
            )
        self._check(shapes, inputs)
        known = _Known(matched, _flat(shapes.image), _flat(shapes.text))
        if len(self._known) > _KEPT_SHAPES:
            self._known.clear()
        self._known[key] = known
        return known

    def _mask(
        self,
        inputs: PairInputs,
        side: Side,
        axes: tuple[Axes, Axes | None],
        features: Place,
        listed: Place | None,
    ) -> UsedMask | None:
        """The mask of one side: the one that the source of pairs names, or the one beside it.

        Args:
            inputs: both sides.
            side: which of them.
            axes: of its features, and of the stack they are cut from, or None.
            features: where they lie.
            listed: where the source of pairs says the mask lies.
        """
        given = inputs.image if side == "image" else inputs.text
        of_row, stack_axes = axes
        row_of = None if given.row is None or stack_axes is None else (given.row, stack_axes)
        if listed is not None:
            with ExitStack() as stack:
                part = given.row is not None
                file = self._files.open(listed.file, listed.key, stack, part)
                stored = mask_in(file, side, listed.key)
                if not part:
                    stored = stored.loaded()
                style = self._options.mask_style
                return use_mask(stored, of_row, 1, "manifest", style, row_of)
        whole, style = stack_axes or of_row, self._options.mask_style
        by_id = is_an_id(features.key, features.row)
        N = whole.samples or 1
        search = MaskSearch(
            *(given.file, given.stored.key, whole, N, inputs.two_tensors, by_id),
            other=inputs.other_key(side),
        )
        beside = choose_mask(search, style) if len(given.file.tensors) > 1 else None
        if beside is None:
            return None
        return use_mask(beside, of_row, 1, "beside the features", style, row_of)

    def _attention(
        self, pair: Pair, inputs: PairInputs, matched: MatchedInputs
    ) -> AttentionMask | None:
        """The attention mask that the source of pairs names."""
        from fusecli.features.attention_mask import attention_mask_of_row, chosen_mask

        if pair.attention_mask is None:
            return None
        sides = (inputs.image, matched.image_stack), (inputs.text, matched.text_stack)
        rows = [(given.row, None if axes is None else axes.samples) for given, axes in sides]
        with ExitStack() as stack:
            place = pair.attention_mask
            part = any(row is not None for row, _ in rows)
            file = self._files.open(place.file, place.key, stack, part)
            stored, style = chosen_mask(file, place.key), self._options.mask_style
            return attention_mask_of_row(file, stored, matched.shapes, rows, style)

    def _side(
        self,
        given: SideInput,
        axes: Axes,
        flat: tuple[int, int] | None,
        place: Place,
        used: UsedMask | None,
        raw: NDArray[Any],
    ) -> SideFeatures:
        key = given.stored.key
        mask = None if used is None or used.rows.all() else used.rows
        if mask is None and flat is not None and given.stored.dtype == "float32":
            tokens = raw.reshape(flat) if raw.flags.c_contiguous else None
            rows = None if tokens is None else _plain_rows(tokens)
            if tokens is not None and rows is not None:
                return SideFeatures(tokens, None, place, key, rows, used)
        reader = TokenReader(
            given.stored, axes, mask, self._options.allow_nonfinite, first=given.row
        )
        stack, norms = reader.tokens(raw, 0, 1)
        rows = RowStatistics()
        rows.add(norms)
        return SideFeatures(stack[0], None if mask is None else mask[0], place, key, rows, used)


def _plain_rows(tokens: NDArray[np.float32]) -> RowStatistics | None:
    """A fast path, in a third of the time: the lengths, if none of them needs a second look; else
    None."""
    squares = np.einsum("td,td->t", tokens, tokens)
    largest = float(np.maximum.reduce(squares))
    # NaN fails both comparisons.
    if largest < _LARGE and float(np.minimum.reduce(squares)) > NEARLY_ZERO**2 * largest:
        return RowStatistics(len(tokens), 0, largest**0.5, whole=largest_whole(tokens))
    return None


def _notes(
    pair: Pair, inputs: PairInputs, image_mask: UsedMask | None, text_mask: UsedMask | None
) -> Sequence[Note]:
    """Of files of several tensors; of a file by pair id only what belongs to the pair."""
    several = False
    for place, given in ((pair.image, inputs.image), (pair.text, inputs.text)):
        if len(given.file.tensors) > 1:
            several |= not is_an_id(place.key, place.row) or bool(scale_keys(given.stored))
    if not several:
        return ()
    by_id = [is_an_id(place.key, place.row) for place in (pair.image, pair.text)]
    return notes_on_inputs(inputs, (image_mask, text_mask), by_id=(by_id[0], by_id[1]))


def _check_rows(inputs: PairInputs, matched: MatchedInputs) -> None:
    if matched.image_stack is not None:
        check_row("image", inputs.image, matched.image_stack.samples or 1)
    if matched.text_stack is not None:
        check_row("text", inputs.text, matched.text_stack.samples or 1)


def _raw(given: SideInput, stack: Axes | None) -> NDArray[Any]:
    if given.row is None or stack is None:
        return given.stored.raw()
    return raw_row(given.stored, stack.letters.index("N"), given.row)


def _flat(axes: Axes) -> tuple[int, int] | None:
    return (axes.tokens, axes.width) if axes.order == tuple(range(len(axes.shape))) else None
