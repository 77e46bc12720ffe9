"""Deal groups of pairs out to parts, so that each part has its share of every class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.training.targets import IGNORED, Targets

Rows = NDArray[np.int64]

_STRATA = 10  # of a number to predict: tenths of its range of values


def deal(
    rows: Rows, groups: Rows, strata: Rows, shares: dict[str, float], seed: int
) -> NDArray[np.str_]:
    """Deal groups out to parts, so that each part has its share of every stratum.

    Groups stand in the order of their strata, in random order within one. Each goes to the part
    that is furthest behind its share of the rows dealt so far.

    Args:
        rows: int64 [m], the pairs to deal out.
        groups, strata: int64 [n], of all pairs.
        shares: of each part.
        seed: of the order.

    Returns:
        The part of each of the rows. [m]
    """
    numbers, inverse, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    stratum = _most_frequent(inverse, strata[rows], len(numbers))
    generator = np.random.default_rng([seed, 7919])
    order = np.lexsort((generator.random(len(numbers)), stratum))
    names = np.asarray(list(shares))
    total = sum(shares.values())
    wanted = [share / total for share in shares.values()]
    behind = [0.0] * len(names)
    chosen = np.zeros(len(numbers), np.int64)
    for group in order.tolist():
        size = float(sizes[group])
        behind = [short + share * size for short, share in zip(behind, wanted, strict=True)]
        part = max(range(len(names)), key=behind.__getitem__)
        behind[part] -= size
        chosen[group] = part
    _fill_empty(chosen, sizes, len(names))
    dealt: NDArray[np.str_] = names[chosen[inverse]]
    return dealt


def _fill_empty(chosen: Rows, sizes: Rows, parts: int) -> None:
    """Give a part without a group the smallest group of the part that has the most groups."""
    for part in range(parts):
        counts = np.bincount(chosen, minlength=parts)
        if counts[part] or counts.max() < 2:
            continue
        donors = np.flatnonzero(chosen == int(counts.argmax()))
        chosen[donors[np.argmin(sizes[donors])]] = part


def _most_frequent(group: Rows, stratum: Rows, count: int) -> Rows:
    """The stratum that most rows of each group have; the lowest of several. [count]"""
    kinds = int(stratum.max()) + 1
    pairs, frequency = np.unique(group * kinds + stratum, return_counts=True)
    order = np.lexsort((pairs % kinds, -frequency, pairs // kinds))
    of_group, first = np.unique((pairs // kinds)[order], return_index=True)
    best = np.zeros(count, np.int64)
    best[of_group] = (pairs % kinds)[order][first]
    return best


def strata_of(targets: Targets) -> Rows:
    """A number a pair; parts are made so that each has its share of every number. [n]

    The class; the tenth of the range of a number; the rarest of several labels or tags.
    """
    values = targets.values
    if targets.task == "classify":
        return values.astype(np.int64)
    if targets.task == "regress":
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        tenths: Rows = ranks * _STRATA // len(values)
        return tenths
    if targets.task == "match":
        return np.zeros(len(values), np.int64)
    held = values > 0 if targets.task == "multilabel" else _tags_held(targets)
    rarity = np.where(held, held.sum(axis=0), len(held) + 1)
    rarest: Rows = np.where(held.any(axis=1), np.argmin(rarity, axis=1), held.shape[1])
    return rarest


def _tags_held(targets: Targets) -> NDArray[np.bool_]:
    held = np.zeros((targets.n, len(targets.names)), bool)
    rows, tokens = np.nonzero(targets.values != IGNORED)
    held[rows, targets.values[rows, tokens].astype(np.int64)] = True
    return held


def classes_held(targets: Targets) -> NDArray[np.bool_]:
    """Which classes each pair has. [n, C]"""
    if targets.task == "tag":
        return _tags_held(targets)
    if targets.task == "multilabel":
        several: NDArray[np.bool_] = targets.values > 0
        return several
    held = np.zeros((targets.n, len(targets.names)), bool)
    held[np.arange(targets.n), targets.values.astype(np.int64)] = True
    return held
