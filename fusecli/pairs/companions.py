"""Tensors of a file by pair id that belong to features and are no features: masks and scales."""

from __future__ import annotations

import math
from collections.abc import Container

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
    owned: dict[str, list[str]] = {}
    for key in masks:
        owned.setdefault(owner_named(key), []).append(key)
    of_all = owned.pop("", [])
    owners = _owners(keys, owned) if owned else {}
    scales = any(map(is_scale_name, named))
    found: set[str] = set()
    if owners or of_all or scales:
        with open_features(file) as opened:
            for name, features in owners.items():
                shapes = [opened.shape_of(key) for key in features]
                found.update(key for key in owned[name] if _belongs(opened.shape_of(key), shapes))
            if scales:
                found |= keys_of_scales(opened)
            if of_all:
                tokens = _token_counts(opened, keys)
                found.update(key for key in of_all if _marks(opened, key, tokens))
    return frozenset(found)


def _owners(keys: list[str], owned: Container[str]) -> dict[str, list[str]]:
    """The features that masks are named after: the key itself, or those of one dict."""
    owners: dict[str, list[str]] = {}
    for key in keys:
        if key in owned:
            owners.setdefault(key, []).append(key)
        nest = key.rpartition(".")[0]
        if nest in owned and mask_meaning(key) is None:
            owners.setdefault(nest, []).append(key)
    return owners


def _belongs(shape: tuple[int, ...], owners: list[tuple[int, ...]]) -> bool:
    """Whether what is named after features can be their mask by its shape.

    `ski_mask` may be the id of another pair, beside `ski`: then it has tokens and a width as well,
    and not to fuse it would go unnoticed. One row of marks counts, also where it is too long or
    too short: it is refused with its features.
    """
    size, flat = math.prod(shape), sum(length != 1 for length in shape) <= 1
    for owner in owners:
        tokens = math.prod(owner[:-1])
        map_first = len(owner) > len(shape) > 1 and shape == owner[:-3] + owner[-2:]
        if size == tokens or (flat and tokens > 1) or map_first:
            return True
    return False


def _token_counts(file: FeatureFile, keys: list[str]) -> set[int]:
    """How many tokens the features of a file have."""
    shapes = (file.shape_of(key) for key in keys if mask_meaning(key) is None)
    return {math.prod(shape[:-1]) for shape in shapes if len(shape) > 1}


def _marks(file: FeatureFile, key: str, tokens: set[int]) -> bool:
    """Whether a mask of all features has a mark for each token of some of them, or counts them."""
    size = math.prod(file.shape_of(key))
    meaning = mask_meaning(key)
    return size in tokens or (size == 1 and meaning is not None and meaning.style == "lengths")
