"""Attention masks: which text token may attend to which image token.

Their numbers have the conventions of masks of tokens (`masks.py`), save that counts make no sense
here. Torch has both of the first two: `nn.MultiheadAttention` takes an `attn_mask` that is true
where a token may not attend, `scaled_dot_product_attention` one that is true where it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError, UsageError
from fusecli.features.axes import Side
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import MaskStyle, base_name, mask_meaning
from fusecli.features.masks import LEAST_ADDITIVE, is_float, marks_of
from fusecli.features.pair_shapes import PairShapes
from fusecli.features.select import tensor_of
from fusecli.features.tensor import InMemory, StoredTensor
from fusecli.records import record

Mask = NDArray[np.bool_]

_NAMES = ("attention_mask", "cross_attention_mask", "attn_mask", "memory_mask", "mask")
_SLICE = 1 << 24  # marks that are looked at at once


@record
class AttentionMask:
    """Which text token of a pair may attend to which image token, for all pairs of a job.

    Attributes:
        file: that holds it.
        stored: where it lies.
        style: what its numbers mean.
        assumed: nothing said so: neither an option, nor a name, nor the numbers themselves.
        T, P: text and image tokens.
        packed: a bit a mark, 1 where the token may attend, `[N, T, P / 8]`, or `[1, T, P / 8]`
            where one mask holds for all pairs.
        allowed: marks that are 1.
    """

    file: FeatureFile
    stored: StoredTensor
    style: MaskStyle
    assumed: bool
    T: int
    P: int
    packed: NDArray[np.uint8]
    allowed: int

    @property
    def marks(self) -> int:
        """Marks in all."""
        return len(self.packed) * self.T * self.P

    @property
    def note(self) -> str | None:
        """What a person is told of a mask whose meaning was assumed."""
        if not self.assumed:
            return None
        return (
            f"{self.stored.where}: 1 is taken for a text token that may attend to an image token; "
            "for a mask that is 1 where it may not (nn.MultiheadAttention's attn_mask) say "
            "--mask-style padding"
        )

    def rows(self, start: int, stop: int) -> Mask:
        """The marks of samples `start:stop`, bool `[n, T, P]`, or `[1, T, P]` for all of them."""
        part = self.packed if len(self.packed) == 1 else self.packed[start:stop]
        return np.unpackbits(part, axis=-1, count=self.P).view(np.bool_)


def read_attention_mask(
    file: FeatureFile, key: str | None, shapes: PairShapes, style: MaskStyle | None
) -> AttentionMask:
    """Read an attention mask.

    Args:
        file: the open file.
        key: of the mask; None where it is the only tensor, or has a usual name.
        shapes: of the job.
        style: what the numbers of masks mean; None goes by the key's name and by the numbers.

    Raises:
        FeatureFileError: the file cannot be read, several of its tensors could be meant, or it
            holds something other than marks.
        ShapeError: its shape is not that of the tokens.
        UsageError: the style is that of counts, or the name has two meanings.
    """
    return attention_mask_of(file, chosen_mask(file, key), shapes, style)


def attention_mask_of(
    file: FeatureFile, stored: StoredTensor, shapes: PairShapes, style: MaskStyle | None
) -> AttentionMask:
    """Read an attention mask that was chosen.

    Args:
        file: the open file.
        stored: the mask in it.
        shapes: of the job.
        style: what the numbers of masks mean; None goes by the key's name and by the numbers.

    Raises: as `read_attention_mask`.
    """
    if style == "lengths":
        raise UsageError(
            f"--mask-style lengths: {stored.where} has a mark for each text and image token, and "
            "counts cannot be one: say keep, padding or additive"
        )
    samples = _check_shape(stored, shapes)
    T, P = shapes.T, shapes.P
    zero = np.empty((samples, T, -(-P // 8)), np.uint8)
    zeros, other, negative = 0, False, True
    for start, values in _slices(stored, samples, T, P):
        is_zero = values == 0
        others = values[~is_zero]
        other = other or bool((others != 1).any())
        negative = negative and bool((others <= LEAST_ADDITIVE).all())
        zeros += int(is_zero.sum())
        zero[start : start + len(values)] = np.packbits(is_zero, axis=-1)
    marks = samples * T * P
    # Zeros alone are scores only in a type that scores have.
    is_additive = negative and zeros > 0 and (zeros < marks or is_float(stored))
    found, assumed = _style_of(stored, style, is_additive)
    if other if found != "additive" else not negative:
        _refuse_numbers(stored, found, samples, T, P)
    allowed = zeros
    if found == "keep":
        allowed = marks - zeros
        np.invert(zero, out=zero)
    return AttentionMask(file, stored, found, assumed, T, P, zero, allowed)


@record
class Choices:
    """To how many tokens of the context side the real tokens of the query side may attend.

    Attributes:
        query: the query side.
        tokens: real tokens of the query side, in all samples.
        single: of these, those that may attend to one token.
        empty: of these, those that may attend to none.
        first_empty: sample and token of the first of them, or None.
    """

    query: Side
    tokens: int
    single: int
    empty: int
    first_empty: tuple[int, int] | None


def count_choices(
    mask: AttentionMask, image_mask: Mask | None, text_mask: Mask | None, query: Side
) -> Choices:
    """Count the tokens that each token of the query side may attend to.

    Args:
        mask: which text token may attend to which image token.
        image_mask, text_mask: bool `[N, tokens]` or `[1, tokens]`, or None if all are real.
        query: the query side.
    """
    samples = max(len(part) for part in (mask.packed, image_mask, text_mask) if part is not None)
    context_axis = 2 if query == "text" else 1
    own = text_mask if query == "text" else image_mask
    tokens = single = empty = 0
    first_empty = None
    step = max(1, _SLICE // (mask.T * mask.P))
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        allowed = mask.rows(start, stop)
        for side, axis in ((image_mask, 1), (text_mask, 2)):
            if side is not None:
                allowed = allowed & np.expand_dims(_cut(side, start, stop), axis)
        number = allowed.sum(axis=context_axis)  # [n, tokens of the query side]
        real = np.ones((1, 1), bool) if own is None else _cut(own, start, stop)
        real = np.broadcast_to(real, number.shape)
        tokens += int(real.sum())
        single += int((real & (number == 1)).sum())
        none = real & (number == 0)
        if none.any() and first_empty is None:
            sample, token = np.argwhere(none)[0]
            first_empty = start + int(sample), int(token)
        empty += int(none.sum())
    return Choices(query, tokens, single, empty, first_empty)


def refuse_empty(mask: AttentionMask, choices: Choices, samples: int) -> None:
    """Whether every real token of the query side may attend to a real token of the other.

    Args:
        mask: for the message.
        choices: of the query side's tokens.
        samples: of the job.

    Raises:
        ShapeError: one may attend to nothing; the first is named.
    """
    if choices.first_empty is None:
        return
    sample, token = choices.first_empty
    of = f"sample {sample}, " if samples > 1 else ""
    more = f" (and {choices.empty - 1} more)" if choices.empty > 1 else ""
    context = "image" if choices.query == "text" else "text"
    raise ShapeError(
        f"{mask.stored.where}: {of}{choices.query} token {token}{more} may attend to no {context} "
        "token: check --mask-style, or say --allow-empty-image, which gives it a context of zero"
    )


def _cut(mask: Mask, start: int, stop: int) -> Mask:
    return mask if len(mask) == 1 else mask[start:stop]


def attention_mask_of_row(
    file: FeatureFile,
    stored: StoredTensor,
    shapes: PairShapes,
    rows: Sequence[tuple[int | None, int | None]],
    style: MaskStyle | None,
) -> AttentionMask:
    """Read the attention mask of one pair; of a stack of masks only the pair's row.

    Args:
        file: the open file.
        stored: the mask in it.
        shapes: of the pair.
        rows: of the image and of the text the row that is cut from a stack, and the samples of
            that stack; None where the whole tensor is read.
        style: as for `attention_mask_of`.

    Raises:
        ShapeError: both sides are rows of stacks of as many samples, and their rows differ.

    Otherwise as `read_attention_mask`.
    """
    if stored.shape in ((shapes.T, shapes.P), (1, shapes.T, shapes.P)):
        return attention_mask_of(file, stored, shapes, style)
    stacked = len(stored.shape) > 2
    own = {row for row, samples in rows if row is not None and stored.shape[:1] == (samples,)}
    if stacked and len(own) > 1:
        raise ShapeError(
            f"{stored.where}: the attention mask {list(stored.shape)} has as many samples as both "
            f"the image and the text, whose rows {' and '.join(map(str, sorted(own)))} differ: "
            f"give the pair a mask {[shapes.T, shapes.P]} of its own"
        )
    if stacked and own:
        (row,) = own
        part = stored.raw_part(0, row, row + 1)
        stored = replace(stored, shape=part.shape, nbytes=part.nbytes, source=InMemory(part))
    return attention_mask_of(file, stored, shapes, style)


def chosen_mask(file: FeatureFile, key: str | None) -> StoredTensor:
    """The attention mask in a file.

    Raises:
        FeatureFileError: no such tensor, or several that could be meant.
    """
    if key is not None:
        return tensor_of(file, key)
    if len(file.tensors) == 1:
        return next(iter(file.tensors.values()))
    usual = [name for name in file.tensors if base_name(name) in _NAMES]
    if len(usual) == 1:
        return file.tensors[usual[0]]
    raise FeatureFileError(
        f"{file.where}: which of its tensors is the attention mask is not known: say "
        f"--attention-mask {file.name}:KEY; {file.listed}"
    )


def _check_shape(stored: StoredTensor, shapes: PairShapes) -> int:
    """How many samples a mask holds."""
    N, T, P, shape = shapes.N, shapes.T, shapes.P, stored.shape
    if len(shape) == 4 and shape[1] == 1:  # of scores, [N, heads, T, P]
        shape = (shape[0], *shape[2:])
    if shapes.image.token_letters == "HW":
        map_shape = (shapes.image.size("H"), shapes.image.size("W"))
        if shape[-2:] == map_shape:
            shape = (*shape[:-2], P)
    if shape in ((T, P), (1, T, P)):
        return 1
    if shape == (N, T, P):
        return N
    wanted = f"{[T, P]}" + (f" or {[N, T, P]}" if N > 1 else "")
    swapped = ": are its axes swapped?" if shape[-2:] == (P, T) else ""
    raise ShapeError(
        f"{stored.where}: the attention mask has shape {list(stored.shape)}, expected {wanted} "
        f"(text tokens, image tokens){swapped}"
    )


def _slices(
    stored: StoredTensor, samples: int, T: int, P: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The numbers as `[n, T, P]`, some samples after the other, each with its first sample."""
    step = samples if samples == 1 else max(1, _SLICE // (T * P))
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        part = stored.read() if samples == 1 else stored.part(0, start, stop)
        yield start, marks_of(stored, part).reshape(-1, T, P)


def _style_of(
    stored: StoredTensor, style: MaskStyle | None, is_additive: bool
) -> tuple[MaskStyle, bool]:
    """What the numbers mean, and whether that is assumed.

    Raises:
        UsageError: marks under a name that has two meanings.
    """
    if style is not None:
        return style, False
    if is_additive:
        return "additive", False
    name = "" if stored.key is None else base_name(stored.key)
    if name.endswith("attn_mask") or name == "memory_mask":
        raise UsageError(
            f"{stored.where}: is 1 where a token may not attend in nn.MultiheadAttention and "
            "nn.Transformer, and where it may in scaled_dot_product_attention: say --mask-style "
            "padding or --mask-style keep"
        )
    meaning = mask_meaning(name)
    if meaning is None or meaning.style == "lengths":
        return "keep", True
    return meaning.style, False


def _refuse_numbers(stored: StoredTensor, style: MaskStyle, samples: int, T: int, P: int) -> None:
    """Raises:
    FeatureFileError: the first number that no style has, else the first that this one does not.
    """
    expected = "0 and 1, or 0 and large negative numbers"
    if style == "additive":
        expected = f"0 where a token may attend and {LEAST_ADDITIVE:g} or less where it may not"
    of_style = {"additive": (False, True)}.get(style, (True, False))
    for one, negative in ((True, True), of_style):
        for start, values in _slices(stored, samples, T, P):
            fits = values == 0
            fits |= one & (values == 1)
            fits |= negative & (values <= LEAST_ADDITIVE)
            wrong = np.argwhere(~fits)
            if len(wrong):
                k, t, p = (int(index) for index in wrong[0])
                place = [t, p] if samples == 1 else [start + k, t, p]
                raise FeatureFileError(
                    f"{stored.where}: holds {values[k, t, p]:g} at {place}, and an attention mask "
                    f"holds {expected}"
                )
