"""Masks: which tensor is one, what its numbers mean, and which tokens are real by it.

Four conventions are in use, and a mask read by the wrong one turns a result round:

    keep      1 or true is a real token, 0 is padding (tokenizers)
    padding   1 or true is padding (torch's key_padding_mask)
    additive  0 is a real token, a large negative number or -inf is padding (added to scores)
    lengths   how many tokens of each sample are real; the others follow them
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.axes import Axes, Side, mask_shapes
from fusecli.features.file import FeatureFile
from fusecli.features.tensor import StoredTensor

MaskStyle = Literal["keep", "padding", "additive", "lengths"]

# Names that are masks whatever their shape: one that does not fit is an error.
_KNOWN: dict[Side, tuple[str, ...]] = {
    "image": ("image_mask", "image_attention_mask"),
    "text": ("text_mask",),
}
_EITHER = "attention_mask"

_IMAGE_WORDS = """
    image images img pixel pixels vision visual region regions patch patches box boxes object
    objects roi rois detections
"""
_TEXT_WORDS = """
    text texts txt caption captions question questions input word words sentence language lang src
"""
_OTHER_COUNTED = "tokens token features feats frames valid"
_NO_MASK_NAMES = """
    token_type_ids special_tokens_mask global_attention_mask bool_masked_pos causal_mask loss_mask
    label_mask labels_mask segmentation_mask segmentation_masks
"""
_LABELS = """
    label labels target targets y class classes id ids index indices split answer answers score
    scores correct truth
"""
_SIDE_WORDS: dict[Side, frozenset[str]] = {
    "image": frozenset(_IMAGE_WORDS.split()),
    "text": frozenset(_TEXT_WORDS.split()),
}
# Words that end the name of a count, as in num_boxes.
_COUNTED = frozenset((_IMAGE_WORDS + _TEXT_WORDS + _OTHER_COUNTED).split())
_LENGTHS = ("length", "lengths", "len", "lens")
# Tensors of 0 and 1 that a tokenizer or a data set puts beside features and that mask nothing.
_NO_MASKS = frozenset(_NO_MASK_NAMES.split())
_LABEL_WORDS = frozenset(_LABELS.split())
LEAST_ADDITIVE = -1e3  # what is added to a score to rule a token out is at most this


class MaskMeaning(NamedTuple):
    """What a tensor's name says about it.

    Attributes:
        side: whose tokens it marks; None if the name does not say.
        style: what its numbers mean.
    """

    side: Side | None
    style: MaskStyle


def mask_meaning(key: str) -> MaskMeaning | None:
    """What kind of mask a tensor of this name is; None if the name does not say it is one."""
    name = base_name(key)
    words = re.split(r"[_\-.\s]+", name)
    if name in _NO_MASKS or name.endswith("attn_mask"):
        return None  # torch's attn_mask has another meaning in each of two functions
    side: Side | None = None
    for each, known in _SIDE_WORDS.items():
        if known & set(words):
            side = each
    if re.search(r"(padding|pad)_?masks?$", name) or name in ("is_padding", "is_pad"):
        return MaskMeaning(side, "padding")
    if words[-1] in ("mask", "masks", "atts"):
        return MaskMeaning(side, "keep")
    counts = words[0] in ("num", "n", "number") and words[-1] in _COUNTED
    if counts or words[-1] in _LENGTHS or name in ("seq_len", "seqlen", "seqlens"):
        return MaskMeaning(side, "lengths")
    return None


def is_known_mask(key: str) -> bool:
    """Whether a tensor of this name is never features."""
    name = base_name(key)
    return mask_meaning(key) is not None or name in _NO_MASKS or name.endswith("attn_mask")


def _named_masks(file: FeatureFile) -> tuple[str, ...]:
    """Keys whose names say that they are masks, in the order of the file.

    Looked for once a file: a file by pair id holds thousands of tensors, and each pair asks.
    """
    if not file.mask_names:
        file.mask_names.append(tuple(key for key in file.tensors if mask_meaning(key) is not None))
    return file.mask_names[0]


def choose_mask(
    file: FeatureFile,
    features: str | None,
    axes: Axes,
    N: int,
    text_only: bool,
    style: MaskStyle | None = None,
    by_name_only: bool = False,
) -> StoredTensor | None:
    """Find a mask stored beside the features of one side; None where there is none.

    Args:
        file: the file of the features.
        features: key of the features.
        axes: of the features, of the whole stack where rows of it are read.
        N: samples in them.
        text_only: both sides' features are in this file, as two tensors, and a bare
            `attention_mask` is the tokenizer's and so the text's.
        style: what the numbers of masks mean whose names do not say it.
        by_name_only: the file holds tensors of many pairs: only what is named a mask and has
            the right shape is one.

    Raises:
        FeatureFileError: a tensor has the shape and the numbers of a mask, and neither its name
            nor the style says what they mean.
    """
    side = axes.side
    neutral = not (text_only and side == "image")
    names = [*_KNOWN[side], *([_EITHER] if neutral else [])]
    others = [key for key in _named_masks(file) if key != features and key not in names]
    for key in names:
        if key in file.tensors and key != features:
            stored = file.tensors[key]
            if not by_name_only or _style_by_shape(stored, axes, N) is not None:
                return stored
    for wanted in (side, None) if neutral else (side,):
        for key in others:
            meaning = mask_meaning(key)
            if meaning is None or meaning.side != wanted:
                continue
            if meaning.style == "lengths":
                if _is_counts(file.tensors[key], N) and axes.tokens > 1:
                    return file.tensors[key]
            elif fits_tokens(file.tensors[key], axes, N):
                return file.tensors[key]
    if by_name_only or axes.tokens == 1:
        return None
    for key in file.tensors:
        if key == features or key in names or mask_meaning(key) is not None:
            continue
        if fits_tokens(file.tensors[key], axes, N) and _may_be_a_mask(
            file.tensors[key], key, axes, N
        ):
            if style is not None:
                return file.tensors[key]
            raise FeatureFileError(
                f"{file.tensors[key].where}: has the shape and the numbers of a mask of the "
                f"{side} tokens, and its name does not say what they mean: say --mask-style keep "
                f"if 1 is a real token, --mask-style padding if 1 is padding, or --{side}-mask "
                "none to leave it out"
            )
    return None


def the_mask_of(file: FeatureFile, side: Side) -> StoredTensor:
    """The mask in a file given as `--image-mask` / `--text-mask`.

    Raises:
        FeatureFileError: several tensors and none with a usual name.
    """
    if len(file.tensors) == 1:
        return next(iter(file.tensors.values()))
    meanings = {key: mask_meaning(key) for key in file.tensors}
    usual = [name for name in (*_KNOWN[side], _EITHER, "mask") if name in file.tensors]
    for wanted in (side, None):
        usual += [key for key, meaning in meanings.items() if meaning and meaning.side == wanted]
    if usual:
        return file.tensors[usual[0]]
    raise FeatureFileError(f"{file.where}: none of its tensors is called a mask: {file.listed}")


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
    meaning = None if stored.key is None else mask_meaning(stored.key)
    if style is None and meaning is not None:
        style = meaning.style
    if style == "lengths":
        return _from_lengths(stored, axes, N)
    if not fits_tokens(stored, axes, N):
        wanted = " or ".join(str(list(shape)) for shape in mask_shapes(axes, N))
        counts = (
            "; if it counts the real tokens of each sample say --mask-style lengths"
            if _is_counts(stored, N)
            else ""
        )
        raise ShapeError(
            f"{stored.where}: the {axes.side} mask has shape {list(stored.shape)}, "
            f"expected {wanted} for features {list(axes.shape)} (read as {axes.letters}); "
            f"--{axes.side}-mask none ignores a stored mask{counts}"
        )
    values = stored.read()
    if style == "additive" or (
        (style is None or meaning is not None) and _is_additive(stored, values)
    ):
        real = _from_additive(stored, values)
    else:
        _refuse_other_numbers(stored, values)
        real = values == (0 if style == "padding" else 1)
    return real.reshape(-1, axes.tokens)


def fits_tokens(stored: StoredTensor, axes: Axes, N: int) -> bool:
    """Whether a tensor has a mask's shape, `[N, 1, 1, tokens]` of attention scores included."""
    return _style_by_shape(stored, axes, N) is not None


def _style_by_shape(stored: StoredTensor, axes: Axes, N: int) -> str | None:
    shape = stored.shape
    if len(shape) == 4 and shape[1:3] == (1, 1) and axes.token_letters:
        shape = (shape[0], shape[3])
    return "marks" if shape in mask_shapes(axes, N) else None


def _is_counts(stored: StoredTensor, N: int) -> bool:
    whole = stored.source.problem is None and np.dtype(_numpy_name(stored)).kind in "iuf"
    return whole and stored.shape in ((N,), (N, 1), *(((),) if N == 1 else ()))


def _may_be_a_mask(stored: StoredTensor, key: str, axes: Axes, N: int) -> bool:
    """Whether a tensor of the right shape holds marks, both kinds of them."""
    if base_name(key) in _NO_MASKS or set(re.split(r"[_\-.\s]+", base_name(key))) & _LABEL_WORDS:
        return False
    if stored.source.problem is not None or np.dtype(_numpy_name(stored)).kind not in "biu":
        return False
    if len(stored.shape) == 1 and N > 1 and axes.tokens == N:
        return False  # one number a sample, as likely as one a token
    values = stored.raw()
    return bool(((values == 0) | (values == 1)).all() and values.any() and not values.all())


def _is_additive(stored: StoredTensor, values: NDArray[np.float32]) -> bool:
    """Zeros and large negative numbers, in a type that scores have."""
    if not is_float(stored):
        return False
    zero = values == 0  # with none of them it rules out everything, which nobody means
    return bool((zero | (values <= LEAST_ADDITIVE)).all() and zero.any())


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
    if not _is_counts(stored, N) and stored.shape != (1,):
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


def _numpy_name(stored: StoredTensor) -> str:
    """A numpy type of the same kind as the stored one."""
    return "float32" if stored.dtype.startswith(("bfloat", "float8")) else stored.dtype


def is_float(stored: StoredTensor) -> bool:
    """Whether a tensor is of a type that attention scores have."""
    return np.dtype(_numpy_name(stored)).kind == "f"


def base_name(key: str) -> str:
    """The last part of a key that leads through nested dicts."""
    return key.rpartition(".")[2].lower()
