"""Masks: which tensor is a mask, what its numbers mean, and which tokens it marks as real.

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
from fusecli.features.axes import Axes, Side, mask_shapes
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import (
    MaskStyle,
    base_name,
    is_known_mask,
    is_label,
    mask_meaning,
    owner_named,
)
from fusecli.features.tensor import StoredTensor

# Tensors of these names are always masks: one whose shape does not fit is an error.
_KNOWN: dict[Side, tuple[str, ...]] = {
    "image": ("image_mask", "image_attention_mask"),
    "text": ("text_mask",),
}
_EITHER = "attention_mask"

LEAST_ADDITIVE = -1e3  # what is added to a score to rule a token out is at most this
_BYTE = 255  # stands for 1 in masks that were stored as pictures


# DINOv2's `masks` are those of its training, true where a patch was hidden.
_DINO = ("x_norm_", "x_prenorm")
# Offsets of samples whose tokens are stored one after the other; the last may be the end.
_BEGINNING_NAMES = """
    cu_seqlens cu_seq_lens cu_lens offset offsets ptr indptr splits row_splits boundaries starts
"""
_BEGINNINGS = frozenset(_BEGINNING_NAMES.split())
# Of which sample each token is.
_INDEX_NAMES = """
    batch batch_index batch_idx batch_ids sample_index sample_idx sample_ids segment_ids seq_idx
    sequence_ids sequence_index document_ids doc_ids
"""
_INDICES = frozenset(_INDEX_NAMES.split())
_POSITIONS = frozenset(("position_ids", "positions", "position_index", "pos_ids"))
_SEPARATORS = "._-/ "  # of the words of a name
_NEAR = 8  # tokens more or fewer that a class token and registers make


def _named_masks(file: FeatureFile, by_id: str | None) -> list[str]:
    """Keys whose names say that they are masks, those of one owner one after the other.

    Computed once for each file: a file by pair id holds thousands of tensors, and every pair needs
    the keys.

    Args:
        file: that is looked at.
        by_id: key of the features, where the file holds tensors of many pairs: masks of other
            pairs are left out.
    """
    if not file.mask_names:
        found: dict[str, list[str]] = {}
        for key in file.tensors:
            if mask_meaning(key) is not None:
                found.setdefault(owner_named(key), []).append(key)
        file.mask_names.append(found)
    named = file.mask_names[0]
    if by_id is None:
        return [key for keys in named.values() for key in keys]
    return [*_masks_of(file, by_id), *named.get("", [])]


def _masks_of(file: FeatureFile, id: str) -> list[str]:
    """Keys of the masks that belong to one tensor of a file by pair id, by their names."""
    named, masks = file.mask_names[0], []
    for at, mark in enumerate(f"{id}."):
        owner = id[:at]
        # A shorter id that is one of the file's own has masks of its own.
        if mark in _SEPARATORS and owner in named and (at == len(id) or owner not in file.tensors):
            masks += named[owner]
    return masks


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
        style: the meaning of the numbers, for masks whose names do not say it.
        by_name_only: the file holds tensors of many pairs: only what is named a mask of these
            features, or of all, and has the right shape is one.

    Raises:
        FeatureFileError: a tensor has the shape and the numbers of a mask, and neither its name
            nor the style says what they mean.
    """
    side = axes.side
    neutral = not (text_only and side == "image")
    names = [*_KNOWN[side], *([_EITHER] if neutral else [])]
    named = _named_masks(file, features if by_name_only else None)
    others = [key for key in named if key != features and key not in names]
    if features is not None and base_name(features).startswith(_DINO):
        others = [key for key in others if base_name(key) != "masks"]
    looked_at = {features, *names, *others}
    if features is not None and not by_name_only:
        found = _mask_of_its_name(file, features, named, axes, N)
        if found is not None:
            return found
        others = _without_those_of_others(file, features, others)
    own = _masks_of(file, features) if by_name_only and features is not None else []
    for key in names:
        if key in file.tensors and key != features:
            stored = file.tensors[key]
            if not by_name_only or fits_tokens(stored, axes, N):
                return stored
    for wanted in (side, None) if neutral else (side,):
        for key in others:
            meaning = mask_meaning(key)
            if meaning is None or meaning.side != wanted or _may_count_samples(key, N):
                continue
            if by_name_only and key in own and axes.tokens > 1 and _is_flat(file.tensors[key]):
                return file.tensors[key]  # or refused, if it does not fit
            if meaning.style == "lengths":
                if _is_counts(file.tensors[key], N) and axes.tokens > 1:
                    return file.tensors[key]
            elif fits_tokens(file.tensors[key], axes, N) or (
                not by_name_only
                and (
                    _is_turned(file.tensors[key], axes, N)
                    or _is_near(file.tensors[key], axes, N, anything=meaning.side is not None)
                )
            ):
                return file.tensors[key]
    if by_name_only or axes.tokens == 1:
        return None
    _refuse_joined(file, features, axes)
    wanted_shapes = mask_shapes(axes, N)
    for key in file.tensors:
        if key in looked_at or not _is_marks(file.shape_of(key), axes, wanted_shapes):
            continue
        stored = file.tensors[key]
        if _may_be_a_mask(stored, key, axes, N):
            if style is not None or _is_additive(stored, stored.read()):
                return stored
            raise FeatureFileError(
                f"{stored.where}: has the shape and the numbers of a mask of the "
                f"{side} tokens, and its name does not say what they mean: say --mask-style keep "
                f"if 1 is a real token, --mask-style padding if 1 is padding, or --{side}-mask "
                "none to leave it out"
            )
    return None


def _mask_of_its_name(
    file: FeatureFile, features: str, named: list[str], axes: Axes, N: int
) -> StoredTensor | None:
    """The mask whose name is that of the features and more: `dog_mask` of `dog`.

    Args:
        file, features, axes, N: as for `choose_mask`.
        named: keys whose names say that they are masks.

    Returns:
        It, also where its shape does not fit: then reading it is an error. None if there is none.
    """
    for key in named:
        if key == features or not key.startswith(features):
            continue  # features of the user's choice may be called a mask
        if key[len(features)] not in _SEPARATORS:
            continue
        meaning, stored = mask_meaning(key), file.tensors[key]
        if meaning is None or meaning.side not in (axes.side, None) or axes.tokens == 1:
            continue
        if _may_count_samples(key, N):
            continue
        if meaning.style == "lengths":
            if _is_counts(stored, N):
                return stored
        elif _is_flat(stored) or fits_tokens(stored, axes, N):
            return stored
    return None


def _without_those_of_others(file: FeatureFile, features: str, masks: list[str]) -> list[str]:
    """Without masks that belong to other features by their names; those nearest by name first.

    `cat_mask` is no mask of `dog` where there is a `cat`, and `question.mask` none of
    `answer.features` where there are `question.features`. Of the beginnings of a mask's name, the
    longest one with which features begin as well counts.
    """
    if not masks:
        return []
    beginnings: set[str] = set()
    axes_count = len(file.shape_of(features))
    for key in file.tensors:
        if key == features or is_known_mask(key):
            continue
        if len(file.shape_of(key)) == axes_count and "int" not in file.tensors[key].dtype:
            beginnings.update(_beginnings(key))
    own, general = [], []
    mine = _beginnings(features)
    for mask in masks:
        parts = _beginnings(mask)
        nearest = max((len(part) for part in parts if part in mine), default=0)
        if nearest < max((len(part) for part in parts if part in beginnings), default=0):
            continue
        if nearest:
            own.append((-nearest, mask))
        else:
            general.append(mask)
    return [mask for _, mask in sorted(own, key=lambda item: item[0])] + general


def _beginnings(key: str) -> set[str]:
    """A key and its beginnings, up to each place where a word ends."""
    return {key, *(key[:at] for at, mark in enumerate(key) if mark in _SEPARATORS and at)}


def the_mask_of(file: FeatureFile, side: Side) -> StoredTensor:
    """The mask in a file given as `--image-mask` / `--text-mask`.

    Raises:
        FeatureFileError: several tensors, and none or more than one with a usual name.
    """
    if len(file.tensors) == 1:
        return next(iter(file.tensors.values()))
    meanings = {key: mask_meaning(key) for key in file.tensors}
    usual = [name for name in (*_KNOWN[side], _EITHER, "mask") if name in file.tensors]
    for wanted in (side, None):
        found = [key for key, meaning in meanings.items() if meaning and meaning.side == wanted]
        if len(found) > 1 and not usual:
            raise FeatureFileError(
                f"{file.where}: several masks, {', '.join(sorted(found)[:4])}: say which one, as "
                f"in --{side}-mask {file.where}:{found[0]}"
            )
        usual += found
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
        (style is None or meaning is not None) and _is_additive(stored, values)
    ):
        real = _from_additive(stored, values)
    else:
        _refuse_other_numbers(stored, values)
        real = values == (0 if style == "padding" else 1)
    return real.reshape(-1, axes.tokens)


def fits_tokens(stored: StoredTensor, axes: Axes, N: int) -> bool:
    """Whether a tensor has a mask's shape, `[N, 1, 1, tokens]` of attention scores included."""
    return _is_marks(stored.shape, axes, mask_shapes(axes, N))


def _is_marks(shape: tuple[int, ...], axes: Axes, wanted: list[tuple[int, ...]]) -> bool:
    if len(shape) == 4 and shape[1:3] == (1, 1) and axes.token_letters:
        shape = (shape[0], shape[3])
    return shape in wanted


def _is_turned(stored: StoredTensor, axes: Axes, N: int) -> bool:
    """Whether a tensor has a mask's sizes in another order or with further axes of size 1.

    One that is called a mask is refused because of its shape, and not ignored.
    """
    sizes = sorted(size for size in stored.shape if size != 1)
    wanted = [sorted(size for size in shape if size != 1) for shape in mask_shapes(axes, N)]
    return axes.tokens > 1 and sizes in wanted


def _refuse_joined(file: FeatureFile, features: str | None, axes: Axes) -> None:
    """Whether the tokens of several samples lie one after the other in `[tokens, width]`,
    or in the one row of `[1, tokens, width]`.

    Raises:
        FeatureFileError: a tensor beside them says so: lengths that add up to the tokens, or the
            places where samples begin.
    """
    if features is None or axes.samples not in (None, 1) or len(axes.token_letters) != 1:
        return
    for key in file.tensors:
        shape = file.shape_of(key)  # a file may hold very many tensors
        if len(shape) > 1 and shape[0] == 1 == axes.samples:
            shape = shape[1:]
        if len(shape) != 1 or shape[0] < 2 or key == features:
            continue
        stored = file.tensors[key]
        meaning, name = mask_meaning(key), base_name(key)
        is_lengths = meaning is not None and meaning.style == "lengths"
        is_index = name in _INDICES and shape == (axes.tokens,)
        is_position = name in _POSITIONS and shape == (axes.tokens,)
        known = is_lengths or is_index or is_position or name in _BEGINNINGS
        if not known or not _is_whole(stored):
            continue
        numbers = stored.read().astype(np.int64).reshape(-1)
        lengths = numbers
        if is_position:  # each sample begins anew, with the same number
            starts = np.flatnonzero(numbers == numbers[0])
            lengths = np.diff(starts, append=axes.tokens)
            counted = numbers[0] + np.arange(axes.tokens) - np.repeat(starts, lengths)
            if len(starts) < 2 or not np.array_equal(numbers, counted):
                continue
            # Patches are numbered in every row of their grid as well, all rows of one length.
            if lengths.max() == 1 or (axes.side == "image" and lengths.min() == lengths.max()):
                continue
        elif is_index:
            if (np.diff(numbers) < 0).any() or numbers[0] == numbers[-1]:
                continue
            lengths = np.unique(numbers, return_counts=True)[1]
        elif not is_lengths:
            ends = numbers[1:] if numbers[-1] == axes.tokens else [*numbers[1:], axes.tokens]
            lengths = np.diff(ends, prepend=numbers[0])
            if numbers[0] != 0:
                continue
        if lengths.sum() == axes.tokens and lengths.min() >= 0:
            count, longest = len(lengths), int(lengths.max())
            raise FeatureFileError(
                f"{stored.where}: says that {features} {list(axes.shape)} holds the tokens of "
                f"{count} samples one after the other: store them as {[count, longest, axes.width]}"
                " with their lengths beside them (torch.nn.utils.rnn.pad_sequence(x.split(lengths),"
                f" batch_first=True)), or say --{axes.side}-mask none if they are the tokens of one"
            )


def _is_whole(stored: StoredTensor) -> bool:
    return stored.source.problem is None and np.dtype(_numpy_name(stored)).kind in "iu"


def _is_near(stored: StoredTensor, axes: Axes, N: int, anything: bool) -> bool:
    """Whether a tensor has a mask's shape but for the number of tokens.

    The masks of an image often count a class token that the features lack, or the other way
    round.

    Args:
        stored: the tensor.
        axes: of the features.
        N: samples in them.
        anything: any other number of tokens counts, and not just a few more or fewer.
    """
    if axes.tokens == 1 or stored.shape[:-1] not in ((), (N,)) or not stored.shape:
        return False
    tokens = stored.shape[-1]
    return tokens != axes.tokens and (anything or abs(tokens - axes.tokens) <= _NEAR)


def _columns(stored: StoredTensor, axes: Axes) -> str:
    """The likely reason why a mask has a few tokens more or fewer, for the message."""
    more = (stored.shape[-1] if stored.shape else 0) - axes.tokens
    if not 0 < abs(more) <= _NEAR or len(stored.shape) > 2:
        return ""
    if more > 0:
        where = ":, " if len(stored.shape) > 1 else ""
        return (
            f"; it counts {more} more: if the first are a class token or registers that the "
            f"features lack, cut them off (mask[{where}{more}:])"
        )
    return f"; it counts {-more} fewer: if the features begin with a class token, give it a mark"


def _is_flat(stored: StoredTensor) -> bool:
    """Whether a tensor has one axis longer than 1 at most, as the mask of one sample has."""
    return sum(size != 1 for size in stored.shape) <= 1


def _is_counts(stored: StoredTensor, N: int) -> bool:
    whole = stored.source.problem is None and np.dtype(_numpy_name(stored)).kind in "iuf"
    return whole and stored.shape in ((N,), (N, 1), *(((),) if N == 1 else ()))


def _may_count_samples(key: str, N: int) -> bool:
    """Whether a count may be one of samples, or a running statistic: one number that is called no
    more than a count."""
    return N == 1 and base_name(key) in ("count", "counts")


def _may_be_a_mask(stored: StoredTensor, key: str, axes: Axes, N: int) -> bool:
    """Whether a tensor of the right shape holds marks, both kinds of them."""
    if is_label(key) or stored.source.problem is not None:
        return False
    if len(stored.shape) == 1 and N > 1 and axes.tokens == N:
        return False  # one number a sample is as likely as one a token
    values = marks_of(stored, stored.read())
    if not values.any() or values.all():
        return False
    return bool(((values == 0) | (values == 1)).all() or _is_additive(stored, values))


def marks_of(stored: StoredTensor, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of a mask; 0 and 1 where it was stored as a picture, with 0 and 255."""
    if stored.dtype == "uint8" and bool(((values == 0) | (values == _BYTE)).all()):
        return values / np.float32(_BYTE)
    return values


def _is_additive(stored: StoredTensor, values: NDArray[np.float32]) -> bool:
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
