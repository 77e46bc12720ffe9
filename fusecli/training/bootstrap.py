"""How sure a metric is: a bootstrap over groups, with the same draws for every model.

Rows that share an image are not independent; drawing rows would give intervals that are too
narrow. So whole groups are drawn with replacement, and the metric is computed with the number of
times that each group was drawn as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.training.flat import Flat, headline_of, positive_scores

Floats = NDArray[np.float64]

DRAWS = 2000
FEW_GROUPS = 30  # below that an interval is rough
_CHUNK = 1 << 21  # weights of rows in memory at a time

# From how often each group was drawn, [B, G], to the metric of each draw, [B].
Drawn = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """A value and where it lies in 95 of 100 draws; NaN where it cannot be computed."""

    value: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0


def headline(flat: Flat) -> float:
    """The metric that the verdict is about, each row counted once; higher is better."""
    return float(_drawn(flat)(np.ones((1, flat.groups)))[0])


def draw_headlines(models: Sequence[Flat], seed: int, draws: int = DRAWS) -> Floats:
    """The metric of every model in every draw.

    Args:
        models: the same rows as different models see them.
        seed: of the draws.
        draws: how many.

    Returns:
        float64 [models, draws]; NaN where a draw has only one class.
    """
    metrics = [_drawn(flat) for flat in models]
    parts = [
        np.stack([metric(counts) for metric in metrics])
        for counts in _draws(models[0].groups, len(models[0].group), seed, draws)
    ]
    return np.concatenate(parts, axis=1)


def _draws(groups: int, rows: int, seed: int, draws: int) -> Iterator[Floats]:
    """How often each group is drawn, some draws at a time: float64 [b, G], b draws in all."""
    generator = np.random.default_rng([seed, 104729])
    at_once = max(1, min(draws, _CHUNK // max(groups, rows)))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = generator.integers(0, groups, (size, groups))
        drawn += np.arange(size)[:, None] * groups
        counts = np.bincount(drawn.reshape(-1), minlength=size * groups)
        yield counts.reshape(size, groups).astype(np.float64)


def interval(value: float, draws: Floats) -> Interval:
    """The 2.5 and 97.5 % of the draws around a value."""
    known = draws[np.isfinite(draws)]
    if not len(known) or not np.isfinite(value):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _drawn(flat: Flat) -> Drawn:
    kind = headline_of(flat.task, len(flat.names))
    if kind == "R2":
        return _r2(flat)
    if kind == "accuracy":
        return _accuracy(flat)
    questions = [_auc(flat, score, positive) for score, positive, _ in positive_scores(flat)]
    if len(questions) == 1:
        return questions[0]

    def mean(counts: Floats) -> Floats:
        values = np.stack([question(counts) for question in questions])
        known = np.isfinite(values)
        total = np.where(known, values, 0).sum(axis=0)
        of_all: Floats = np.where(
            known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan
        )
        return of_all

    return mean


def _sums(flat: Flat, values: Floats) -> Floats:
    """Weighted sums over each group. [m] to [G]"""
    sums: Floats = np.bincount(flat.group, flat.weight * values, flat.groups).astype(np.float64)
    return sums


def _accuracy(flat: Flat) -> Drawn:
    right = _sums(flat, (flat.logits.argmax(axis=1) == flat.truth).astype(np.float64))
    all_rows = _sums(flat, np.ones(len(flat.group)))
    return lambda counts: (counts @ right) / (counts @ all_rows)


def _r2(flat: Flat) -> Drawn:
    truth = flat.truth.astype(np.float64)
    centred = truth - np.average(truth, weights=flat.weight)  # keeps the squares small
    error = _sums(flat, (flat.logits[:, 0] - truth) ** 2)
    first, second = _sums(flat, centred), _sums(flat, centred**2)
    size = _sums(flat, np.ones(len(flat.group)))

    def metric(counts: Floats) -> Floats:
        spread = counts @ second - (counts @ first) ** 2 / (counts @ size)
        with np.errstate(divide="ignore", invalid="ignore"):
            value: Floats = 1 - (counts @ error) / np.where(spread > 0, spread, np.nan)
        return value

    return metric


def _auc(flat: Flat, score: Floats, positive: NDArray[np.bool_]) -> Drawn:
    """The chance that a positive row has a higher score than a negative one; equal ones count half.

    Rows are sorted once; a draw only changes their weights.
    """
    order = np.argsort(score, kind="stable")
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # the first row of each score
    group, weight = flat.group[order], flat.weight[order]
    yes = weight * positive[order]
    no = weight * ~positive[order]
    all_differ = len(ties) == len(order)

    def metric(counts: Floats) -> Floats:
        rows = counts[:, group]
        above, below = rows * yes, rows * no
        if not all_differ:
            above, below = (np.add.reduceat(side, ties, axis=1) for side in (above, below))
        passed = np.cumsum(below, axis=1)
        possible = above.sum(axis=1) * passed[:, -1]
        won = np.einsum("br,br->b", above, passed) - 0.5 * np.einsum("br,br->b", above, below)
        with np.errstate(divide="ignore", invalid="ignore"):
            value: Floats = won / np.where(possible > 0, possible, np.nan)
        return value

    return metric
