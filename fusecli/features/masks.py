"""What the numbers of a mask mean, and which tokens it marks as real.

Four conventions are in use. Read by the wrong one, a mask hides the real tokens:

    keep      1 or true is a real token, 0 is padding (tokenizers)
    padding   1 or true is padding (torch's key_padding_mask)
    additive  0 is a real token, a large negative number or -inf is padding (added to scores)
    lengths   how many tokens of each sample are real; the others follow them
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.axes import Axes, mask_shapes
from fusecli.features.mask_names import MaskStyle, meaning_of
from fusecli.features.tensor import StoredTensor

LEAST_ADDITIVE = -1e3  # what is added to a score to rule a token out is at most this
NEAR = 8  # so many tokens more or fewer can be a class token and registers
_BYTE = 255  # stands for 1 in masks that were stored as pictures


def read_mask(
    stored: StoredTensor, axes: Axes, N: int, style: MaskStyle | None = None
) -> NDArray[np.bool_]:
    """Read a mask and bring it to one row of tokens a sample.

    Args:
        stored: the mask.
        axes: of the features it belongs to.
        N: samples of the job.
        style: what its numbers mean; None goes by its name, and by the numbers of an
            additive one.

    Returns:
        bool `[N, tokens]`, or `[1, tokens]` where one row holds for all samples; true is a
        real token.

    Raises:
        ShapeError: its shape is not that of the tokens.
        FeatureFileError: it holds something that its style does not have.
    """
    meaning = meaning_of(stored.key, stored.file)
    if style is None and meaning is not None:
        style = meaning.style
        if style == "lengths" and _is_marks_in_lengths(stored, axes.tokens, N):
            style = None
    if style == "lengths":
        return _from_lengths(stored, axes, N)
    if not fits_tokens(stored, axes, N):
        wanted = " or ".join(str(list(shape)) for shape in mask_shapes(axes, N))
        counts = (
            "; if it counts the real tokens of each sample say --mask-style lengths"
            if is_counts(stored, N)
            else ""
        )
        pairs = (
            "; a mask of which text token may attend to which image token is given with "
            "--attention-mask (fusecli fuse), and --text-mask none"
            if axes.side == "text" and stored.shape[-2:-1] == (axes.tokens,)
            else ""
        )
        raise ShapeError(
            f"{stored.where}: the {axes.side} mask has shape {list(stored.shape)}, "
            f"expected {wanted} for features {list(axes.shape)} (read as {axes.letters}); "
            f"--{axes.side}-mask none ignores a stored mask{counts}{pairs}{_columns(stored, axes)}"
        )
    values = marks_of(stored, stored.read())
    if style == "additive" or (
        (style is None or meaning is not None) and is_additive(stored, values)
    ):
        real = _from_additive(stored, values)
    else:
        _refuse_other_numbers(stored, values)
        real = values == (0 if style == "padding" else 1)
    return real.reshape(-1, axes.tokens)


def _is_marks_in_lengths(stored: StoredTensor, tokens: int, N: int) -> bool:
    """Whether a file that is called `lengths` holds a mark for each token, and no counts."""
    one_row = len(stored.shape) == 1 and not is_counts(stored, N)
    return not stored.key and stored.shape[-1:] == (tokens,) and (one_row or len(stored.shape) > 1)


def style_of(stored: StoredTensor, rows: NDArray[np.bool_], style: MaskStyle | None) -> MaskStyle:
    """What the numbers of a mask were taken for, after it was read.

    Args:
        stored: the mask.
        rows: what it became, `[N, tokens]` or `[1, tokens]`.
        style: what an option says.
    """
    meaning = meaning_of(stored.key, stored.file)
    if style is None and meaning is not None:
        style = meaning.style
        if style == "lengths" and _is_marks_in_lengths(stored, rows.shape[1], len(rows)):
            style = None
    if style in ("additive", "lengths"):
        return style
    # Masks of floating point numbers are rare, and those of a batch are asked about once a pair.
    is_added = is_float(stored) and is_additive(stored, stored.read())
    return "additive" if is_added else style or "keep"


def fits_tokens(stored: StoredTensor, axes: Axes, N: int) -> bool:
    """Whether a tensor has a mask's shape, `[N, 1, 1, tokens]` of attention scores included."""
    return has_mask_shape(stored.shape, axes, mask_shapes(axes, N))


def has_mask_shape(shape: tuple[int, ...], axes: Axes, wanted: list[tuple[int, ...]]) -> bool:
    """Whether a shape is one of those wanted, or has two axes of size 1 in the middle besides."""
    if len(shape) == 4 and shape[1:3] == (1, 1) and axes.token_letters:
        shape = (shape[0], shape[3])
    return shape in wanted


def _columns(stored: StoredTensor, axes: Axes) -> str:
    """The likely reason why a mask has a few tokens more or fewer, for the message."""
    more = (stored.shape[-1] if stored.shape else 0) - axes.tokens
    if not 0 < abs(more) <= NEAR or len(stored.shape) > 2:
        return ""
    if more > 0:
        where = ":, " if len(stored.shape) > 1 else ""
        return (
            f"; it counts {more} more: if the first are a class token or registers that the "
            f"features lack, cut them off (mask[{where}{more}:])"
        )
    return f"; it counts {-more} fewer: if the features begin with a class token, give it a mark"


def is_counts(stored: StoredTensor, N: int) -> bool:
    """Whether a tensor can hold one count of tokens for each sample."""
    readable = stored.source.problem is None and number_kind(stored) in "iuf"
    return readable and stored.shape in ((N,), (N, 1), *(((),) if N == 1 else ()))


def marks_of(stored: StoredTensor, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of a mask; 0 and 1 where it was stored as a picture, with 0 and 255."""
    if stored.dtype == "uint8" and bool(((values == 0) | (values == _BYTE)).all()):
        return values / np.float32(_BYTE)
    return values


def is_additive(stored: StoredTensor, values: NDArray[np.float32]) -> bool:
    """Zeros and large negative numbers; zeros alone in a type that scores have."""
    low = values <= LEAST_ADDITIVE
    if not (is_float(stored) or low.any()):
        return False
    zero = values == 0  # without any 0 the mask would leave out every token, which is never meant
    return bool((zero | low).all() and zero.any())


def _from_additive(stored: StoredTensor, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    other = np.argwhere((values != 0) & ~(values <= LEAST_ADDITIVE))
    if len(other):
        place = other[0].tolist()
        raise FeatureFileError(
            f"{stored.where}: an additive mask holds 0 for a real token and {LEAST_ADDITIVE:g} "
            f"or less for padding, found {values[tuple(place)]:g} at {place}"
        )
    real: NDArray[np.bool_] = values == 0
    return real


def _refuse_other_numbers(stored: StoredTensor, values: NDArray[np.float32]) -> None:
    other = np.argwhere((values != 0) & (values != 1))
    if len(other):
        place = other[0].tolist()
        raise FeatureFileError(
            f"{stored.where}: a mask holds 1 for a real token and 0 for padding, found "
            f"{values[tuple(place)]:g} at {place}: for other masks say --mask-style padding, "
            "additive or lengths"
        )


def _from_lengths(stored: StoredTensor, axes: Axes, N: int) -> NDArray[np.bool_]:
    if not is_counts(stored, N) and stored.shape != (1,):
        raise ShapeError(
            f"{stored.where}: the {axes.side} lengths have shape {list(stored.shape)}, expected "
            f"{[N]}, how many tokens of each sample are real; --{axes.side}-mask none leaves "
            "them out"
        )
    counts = stored.read().reshape(-1, 1)
    bad = np.flatnonzero((counts < 0) | (counts > axes.tokens) | (counts != np.trunc(counts)))
    if len(bad):
        raise FeatureFileError(
            f"{stored.where}: sample {bad[0]} has {counts[bad[0], 0]:g} real {axes.side} tokens, "
            f"expected a whole number from 0 to {axes.tokens}"
        )
    return np.arange(axes.tokens)[None] < counts


def number_kind(stored: StoredTensor) -> str:
    """numpy's letter for the kind of a tensor's numbers: f, i, u or b."""
    is_narrow = stored.dtype.startswith(("bfloat", "float8"))  # which numpy does not know
    return "f" if is_narrow else np.dtype(stored.dtype).kind


def is_float(stored: StoredTensor) -> bool:
    """Whether a tensor is of a type that attention scores have."""
    return number_kind(stored) == "f"
