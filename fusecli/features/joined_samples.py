"""Tokens of several samples that lie one after the other in a single axis, which are refused."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.axes import Axes
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import base_name, mask_meaning
from fusecli.features.masks import number_kind

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

# What the numbers beside such tokens say: the length of each sample, where each begins, of which
# sample each token is, or the position of each token in its sample.
_Told = Literal["lengths", "beginnings", "indices", "positions"]


def refuse_joined_samples(file: FeatureFile, features: str | None, axes: Axes) -> None:
    """Refuse `[tokens, width]`, or the one row of `[1, tokens, width]`, of several samples.

    Args:
        file: the file of the features.
        features: their key.
        axes: of the features.

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
        told = _told_by(key, shape[0], axes)
        if told is None:
            continue
        stored = file.tensors[key]
        if stored.source.problem is not None or number_kind(stored) not in "iu":
            continue
        lengths = _lengths(told, stored.read().astype(np.int64).reshape(-1), axes)
        if lengths is not None and lengths.sum() == axes.tokens and lengths.min() >= 0:
            count, longest = len(lengths), int(lengths.max())
            raise FeatureFileError(
                f"{stored.where}: says that {features} {list(axes.shape)} holds the tokens of "
                f"{count} samples one after the other: store them as {[count, longest, axes.width]}"
                " with their lengths beside them (torch.nn.utils.rnn.pad_sequence(x.split(lengths),"
                f" batch_first=True)), or say --{axes.side}-mask none if they are the tokens of one"
            )


def _told_by(key: str, size: int, axes: Axes) -> _Told | None:
    """What a tensor of this name and size tells of the samples; None for one of another name."""
    meaning, name = mask_meaning(key), base_name(key)
    if size == axes.tokens and name in _POSITIONS:
        return "positions"
    if size == axes.tokens and name in _INDICES:
        return "indices"
    if meaning is not None and meaning.style == "lengths":
        return "lengths"
    return "beginnings" if name in _BEGINNINGS else None


def _lengths(told: _Told, numbers: NDArray[np.int64], axes: Axes) -> NDArray[np.int64] | None:
    """The tokens of each sample; None where the numbers do not say what their name says.

    Args:
        told: what the numbers are.
        numbers: `[samples]`, or `[tokens]` for indices and positions.
        axes: of the features.
    """
    if told == "lengths":
        return numbers
    if told == "indices":
        if (np.diff(numbers) < 0).any() or numbers[0] == numbers[-1]:
            return None
        return np.unique(numbers, return_counts=True)[1]
    if told == "beginnings":
        if numbers[0] != 0:
            return None
        ends = numbers[1:] if numbers[-1] == axes.tokens else [*numbers[1:], axes.tokens]
        return np.diff(ends, prepend=numbers[0])
    # In each sample the positions count up from the same number.
    starts = np.flatnonzero(numbers == numbers[0])
    lengths = np.diff(starts, append=axes.tokens)
    counted = numbers[0] + np.arange(axes.tokens) - np.repeat(starts, lengths)
    if len(starts) < 2 or not np.array_equal(numbers, counted):
        return None
    # Patches are numbered in every row of their grid as well, all rows of one length.
    if lengths.max() == 1 or (axes.side == "image" and lengths.min() == lengths.max()):
        return None
    return lengths
