"""Tensors of a file by pair id that belong to features and are no features: masks and scales."""

from __future__ import annotations

import math

from fusecli.features.file import FeatureFile, open_features
from fusecli.features.mask_names import ends_in_word, mask_meaning, owner_named
from fusecli.features.quantized import is_scale_name, keys_of_scales


def companions(file: str, keys: list[str]) -> frozenset[str]:
    """Which keys of a file are masks or scales of other tensors in it, and so no features.

    Each is used, or refused, when its features are read.

    Args:
        file: the path.
        keys: those that count.

    Raises:
        FeatureFileError: the file is missing or damaged.
    """
    named = [key for key in keys if ends_in_word(key)]
    masks = [key for key in named if mask_meaning(key) is not None]
    found: set[str] = set()
    if masks:
        owners = {owner for owner, dot, _ in (key.rpartition(".") for key in keys) if dot}
        owners.update(keys)
        found.update(key for key in masks if owner_named(key) in owners)
    of_all = [key for key in masks if not owner_named(key)]
    scales = any(map(is_scale_name, named))
    if of_all or scales:
        with open_features(file) as opened:
            if scales:
                found |= keys_of_scales(opened)
            if of_all:
                tokens = _token_counts(opened, keys)
                found.update(key for key in of_all if _marks(opened, key, tokens))
    return frozenset(found)


def _token_counts(file: FeatureFile, keys: list[str]) -> set[int]:
    """How many tokens the features of a file have."""
    shapes = (file.shape_of(key) for key in keys if mask_meaning(key) is None)
    return {math.prod(shape[:-1]) for shape in shapes if len(shape) > 1}


def _marks(file: FeatureFile, key: str, tokens: set[int]) -> bool:
    """Whether a mask of all features has a mark for each token of some of them, or counts them."""
    size = math.prod(file.shape_of(key))
    meaning = mask_meaning(key)
    return size in tokens or (size == 1 and meaning is not None and meaning.style == "lengths")
