"""Parts of the pairs that share no image and no group: training, validation, held-out test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import PairsError, counted, shortened
from fusecli.training.deal import classes_held, deal, strata_of
from fusecli.training.targets import Targets

Rows = NDArray[np.int64]

PARTS = ("train", "validation", "test")
LEAST_PAIRS = 20


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
        part = deal(np.arange(n), groups, strata, shares, seed)
    else:
        _refuse_divided(np.asarray(targets.split), groups, ids)
        part = _complete(targets.split, groups, strata, share, test_share, seed)
    _keep_classes_in_training(part, targets, groups)
    _refuse_unlearnable_training(part, targets)
    return _split(part, groups)


def _refuse_unlearnable_training(part: NDArray[np.str_], targets: Targets) -> None:
    """Raises:
    PairsError: training has no pair that counts, or a given split leaves it with pairs of one
        class only.
    """
    counted_pairs = (part == "train") & _counts(targets)
    if not counted_pairs.any():
        raise PairsError(
            "all pairs of the training part have weight 0: there is nothing to learn from"
        )
    if targets.task != "classify":
        return
    classes = np.unique(targets.values[counted_pairs])
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
        part[training] = deal(training, groups, strata, shares, seed)
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
    fold_of = deal(everybody, groups, strata, shares, seed)
    splits = []
    for fold in range(folds):
        inside = fold_of == str(fold)
        rest = np.flatnonzero(~inside)
        share = default_share(targets.n) if val_fraction is None else val_fraction
        part = np.full(targets.n, "test", dtype="<U10")
        part[rest] = deal(
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
    part = deal(everybody, groups, strata_of(targets), shares, seed)
    _keep_classes_in_training(part, targets, groups)
    return _split(part, groups)


def inner_folds(split: Split, targets: Targets, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Training and validation rows of K folds over the training and validation parts.

    Fewer folds where there are fewer groups.
    """
    rows = np.sort(np.concatenate([split.train, split.validation]))
    folds = min(folds, len(np.unique(split.groups[rows])))
    shares = {str(fold): 1 / folds for fold in range(folds)}
    fold_of = deal(rows, split.groups, strata_of(targets), shares, seed)
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
    held = _held_by_counted(targets)
    for column in np.flatnonzero(~held[part == "train"].any(axis=0)).tolist():
        if held[part == "train", column].any():  # came with a group that was moved before
            continue
        for name in move_from:
            there = np.flatnonzero((part == name) & held[:, column])
            if len(there) and len(np.unique(groups[part == name])) > 1:
                part[groups == groups[there[0]]] = "train"
                break


def classes_not_learnt(split: Split, targets: Targets) -> list[str]:
    """Classes, labels or tags that no pair of the training part has, where they are known.

    A pair with weight 0 is not learnt from.
    """
    if targets.task in ("regress", "match"):
        return []
    learnt = np.asarray(_held_by_counted(targets)[split.train].any(axis=0))
    return [targets.names[column] for column in np.flatnonzero(~learnt)]


def _counts(targets: Targets) -> NDArray[np.bool_]:
    """Which pairs have a weight above 0. [n]"""
    above: NDArray[np.bool_] = targets.weights() > 0
    return above


def _held_by_counted(targets: Targets) -> NDArray[np.bool_]:
    """Which classes each pair has that counts. [n, C]"""
    return classes_held(targets) & _counts(targets)[:, None]


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
