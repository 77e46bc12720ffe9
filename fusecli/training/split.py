"""Parts of the pairs that share no image and no group: training, validation, held-out test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import PairsError, counted, shortened
from fusecli.training.targets import IGNORED, Targets

Rows = NDArray[np.int64]

PARTS = ("train", "validation", "test")
LEAST_PAIRS = 20
_STRATA = 10  # of a number to predict: tenths of its range of values


@dataclass(frozen=True)
class Split:
    """Who is in which part.

    Attributes:
        train: rows that are learnt from.
        validation: rows that stop training, choose and set thresholds.
        test: rows that are looked at once; empty where all pairs are to be learnt from.
        groups: int64 [n], a number a pair; pairs of one number are in one part.
    """

    train: Rows
    validation: Rows
    test: Rows
    groups: Rows

    def parts(self) -> list[str]:
        """The name of each pair's part; "" for a pair in none. [n]"""
        names = np.full(len(self.groups), "", dtype="<U10")
        for name in PARTS:
            names[getattr(self, name)] = name
        return [str(name) for name in names]


def default_share(n: int) -> float:
    """Share of a part that is held out, by the number of pairs.

    Source: AutoGluon's `default_holdout_frac`: 500 pairs, but from a tenth to a fifth of all.
    """
    return max(0.1, min(0.2, 500 / n))


def join_groups(image_key: Sequence[str], group: Sequence[str] | None) -> Rows:
    """Number the sets of pairs that are connected by an image or a group.

    Args:
        image_key: one a pair, equal where the images are.
        group: one a pair, or None.

    Returns:
        int64 [n], numbered in the order in which they first appear.
    """
    _, images = np.unique(np.asarray(image_key), return_inverse=True)
    links = [images.astype(np.int64)]
    if group is not None:
        _, named = np.unique(np.asarray(group), return_inverse=True)
        links.append(named.astype(np.int64))
    return _numbered(_connected(links))


def _connected(links: list[Rows]) -> Rows:
    """The lowest label that each row reaches over any of the links; rounds until none changes."""
    labels = links[0]
    if len(links) == 1:
        return labels
    while True:
        before = labels
        for link in links:
            lowest = np.full(int(link.max()) + 1, np.iinfo(np.int64).max)
            np.minimum.at(lowest, link, labels)
            labels = lowest[link]
        if np.array_equal(labels, before):
            return labels


def _numbered(labels: Rows) -> Rows:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.reshape(-1)]


def make_split(
    targets: Targets,
    groups: Rows,
    ids: Sequence[str],
    seed: int,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
) -> Split:
    """Three parts; those that the labels give are kept.

    Args:
        targets: what is learnt; its `split` is respected.
        groups: int64 [n], from `join_groups`.
        ids: of the pairs, for messages.
        seed: of the order in which groups are dealt out.
        val_fraction, test_fraction: shares of all pairs; None: `default_share`.

    Raises:
        PairsError: there are too few pairs or groups, or a group is on two sides of a given split.
    """
    n = targets.n
    refuse_too_few(n, groups)
    test_share = default_share(n) if test_fraction is None else test_fraction
    share = default_share(n) if val_fraction is None else val_fraction
    strata = strata_of(targets)
    if targets.split is None:
        shares = {"train": 1 - test_share - share, "test": test_share, "validation": share}
        part = _deal(np.arange(n), groups, strata, shares, seed)
    else:
        _refuse_divided(np.asarray(targets.split), groups, ids)
        part = _complete(targets.split, groups, strata, share, test_share, seed)
    _keep_classes_in_training(part, targets, groups)
    _refuse_one_class(part, targets)
    return _split(part, groups)


def _refuse_one_class(part: NDArray[np.str_], targets: Targets) -> None:
    """Raises:
    PairsError: a given split leaves training with pairs of one class only.
    """
    if targets.task != "classify":
        return
    classes = np.unique(targets.values[part == "train"])
    if len(classes) == 1:
        raise PairsError(
            f"the column split gives training pairs of one class only "
            f"({shortened(targets.names[int(classes[0])])!r}): there is nothing to learn"
        )


def _complete(
    given: Sequence[str], groups: Rows, strata: Rows, share: float, test_share: float, seed: int
) -> NDArray[np.str_]:
    """The given parts; what is not given of validation and test is cut from training."""
    part = np.asarray(given, dtype="<U10")
    training = np.flatnonzero(part == "train")
    if not len(training):
        raise PairsError("the column split gives no pair to train: expected the value train")
    missing = {
        name: size
        for name, size in (("test", test_share), ("validation", share))
        if not (part == name).any()
    }
    if missing:
        left = len(training) / len(part)
        shares = {"train": max(left - sum(missing.values()), left / 2), **missing}
        part[training] = _deal(training, groups, strata, shares, seed)
    return part


def make_folds(
    targets: Targets, groups: Rows, folds: int, seed: int, val_fraction: float | None = None
) -> list[Split]:
    """K splits whose test parts together are all pairs, each pair once.

    Raises:
        PairsError: there are too few pairs, or fewer groups than folds.
    """
    refuse_too_few(targets.n, groups)
    kinds = int(groups.max()) + 1
    if kinds < max(3, folds):
        raise PairsError(f"--folds {folds} needs at least {max(3, folds)} groups, found {kinds}")
    strata = strata_of(targets)
    everybody = np.arange(targets.n)
    shares = {str(fold): 1 / folds for fold in range(folds)}
    fold_of = _deal(everybody, groups, strata, shares, seed)
    splits = []
    for fold in range(folds):
        inside = fold_of == str(fold)
        rest = np.flatnonzero(~inside)
        share = default_share(targets.n) if val_fraction is None else val_fraction
        part = np.full(targets.n, "test", dtype="<U10")
        part[rest] = _deal(
            rest, groups, strata, {"train": 1 - share, "validation": share}, seed + 1 + fold
        )
        _keep_classes_in_training(part, targets, groups, move_from=("validation",))
        splits.append(_split(part, groups))
    return splits


def all_for_training(
    targets: Targets, groups: Rows, seed: int, val_fraction: float | None = None
) -> Split:
    """Training and validation of all pairs, with an empty test part: the last fit of `--folds`."""
    share = default_share(targets.n) if val_fraction is None else val_fraction
    everybody = np.arange(targets.n)
    shares = {"train": 1 - share, "validation": share}
    part = _deal(everybody, groups, strata_of(targets), shares, seed)
    _keep_classes_in_training(part, targets, groups)
    return _split(part, groups)


def inner_folds(split: Split, targets: Targets, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Training and validation rows of K folds over the training and validation parts.

    Fewer folds where there are fewer groups.
    """
    rows = np.sort(np.concatenate([split.train, split.validation]))
    folds = min(folds, len(np.unique(split.groups[rows])))
    shares = {str(fold): 1 / folds for fold in range(folds)}
    fold_of = _deal(rows, split.groups, strata_of(targets), shares, seed)
    return [(rows[fold_of != name], rows[fold_of == name]) for name in shares]


def refuse_too_few(n: int, groups: Rows) -> None:
    """Raises:
    PairsError: three parts cannot be made.
    """
    if n < LEAST_PAIRS:
        raise PairsError(
            f"training needs at least {LEAST_PAIRS} pairs with labels, found {counted(n, 'pair')}"
        )
    kinds = int(groups.max()) + 1
    if kinds < 3:
        raise PairsError(
            f"all {n:,} pairs are in {counted(kinds, 'group')} (pairs that share an image or a "
            "--group): training, validation and test need one each, at least 3"
        )


def _refuse_divided(part: NDArray[np.str_], groups: Rows, ids: Sequence[str]) -> None:
    """Raises:
    PairsError: the given split puts pairs of one group on two sides.
    """
    _, numbers = np.unique(part, return_inverse=True)
    sides = np.unique(np.stack([groups, numbers.reshape(-1)]), axis=1)
    group, count = np.unique(sides[0], return_counts=True)
    divided = group[count > 1]
    if not len(divided):
        return
    rows = np.flatnonzero(groups == divided[0])
    first, other = rows[0], rows[part[rows] != part[rows[0]]][0]
    raise PairsError(
        f"the column split puts {counted(len(divided), 'group')} on two sides, the first with "
        f"{shortened(ids[first])!r} in {part[first]} and {shortened(ids[other])!r} in "
        f"{part[other]}: pairs that share an image or a --group must stand in one part"
    )


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


def _deal(
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


def _keep_classes_in_training(
    part: NDArray[np.str_],
    targets: Targets,
    groups: Rows,
    move_from: tuple[str, ...] = ("validation", "test"),
) -> None:
    """Move a group to training for each class that would not be learnt at all.

    A given test part stays as it is.
    """
    if targets.task in ("regress", "match"):
        return
    if targets.split is not None:
        given = set(targets.split)
        move_from = tuple(name for name in move_from if name not in given)
    held = _classes_held(targets)
    for column in np.flatnonzero(~held[part == "train"].any(axis=0)).tolist():
        if held[part == "train", column].any():  # came with a group that was moved before
            continue
        for name in move_from:
            there = np.flatnonzero((part == name) & held[:, column])
            if len(there) and len(np.unique(groups[part == name])) > 1:
                part[groups == groups[there[0]]] = "train"
                break


def classes_not_learnt(split: Split, targets: Targets) -> list[str]:
    """Classes, labels or tags that no pair of the training part has, where they are known."""
    if targets.task in ("regress", "match"):
        return []
    learnt = np.asarray(_classes_held(targets)[split.train].any(axis=0))
    return [targets.names[column] for column in np.flatnonzero(~learnt)]


def _classes_held(targets: Targets) -> NDArray[np.bool_]:
    """Which classes each pair has. [n, C]"""
    if targets.task == "tag":
        return _tags_held(targets)
    if targets.task == "multilabel":
        several: NDArray[np.bool_] = targets.values > 0
        return several
    held = np.zeros((targets.n, len(targets.names)), bool)
    held[np.arange(targets.n), targets.values.astype(np.int64)] = True
    return held


def _split(part: NDArray[np.str_], groups: Rows) -> Split:
    train, validation, test = (np.flatnonzero(part == name).astype(np.int64) for name in PARTS)
    return Split(train, validation, test, groups)


def seen_share(text_key: Sequence[str], split: Split) -> float:
    """Share of the held-out pairs whose text stands in training or validation too."""
    if not len(split.test):
        return 0.0
    learnt = np.concatenate([split.train, split.validation]).tolist()
    known = {text_key[row] for row in learnt}
    return sum(text_key[row] in known for row in split.test.tolist()) / len(split.test)
