"""Sums of models: how much each of them counts in a line of the table.

Which of several models is best can hardly be told on a few hundred pairs. Their sum is nearly as
good as the best of them (stacking: Wolpert 1992; with weights that are not negative: van der Laan
et al. 2007, Super Learner). The weights come from logits of rows that the models have not learnt
from. The sum begins as the simplest model alone, and moves away from it as far as these rows show
that it should: a Gaussian prior on the weights, which counts for little with thousands of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusecli.training.calibration import fit_temperature
from fusecli.training.flat import Flat, probabilities
from fusecli.training.results import ADDITIVE, CONCAT, FUSION, IMAGE, TEXT

Floats = NDArray[np.float64]

_SPREAD = 0.4  # of the prior on each weight
_LEAST = 0.05  # smaller shares are left out
_LARGEST = 1 << 18  # logits that weights are found from
_STEPS = 500
_SETTLED = 1e-6  # change of every weight in a step


@dataclass(frozen=True)
class Blend:
    """How models are added up.

    Attributes:
        shares: how much each model counts, of a sum of 1, by how far it moves the logits from
            pair to pair. For people.
        factors: what each model's logits are multiplied with, before they are added.
    """

    shares: dict[str, float]
    factors: dict[str, float]


def parts_of(line: str, there: Collection[str]) -> list[str]:
    """Which other lines of the table may count in a line, the simplest first.

    Args:
        line: its name.
        there: lines that there are.
    """
    possible: dict[str, tuple[str, ...]] = {ADDITIVE: (TEXT, IMAGE), FUSION: (ADDITIVE, CONCAT)}
    return [name for name in possible.get(line, ()) if name in there]


def said_shares(line: str, shares: Mapping[str, float]) -> str:
    """`60 % its network, 40 % additive`."""
    return ", ".join(
        f"{100 * share:.0f} % {'its network' if name == line else name}"
        for name, share in shares.items()
    )


def blend(flats: Mapping[str, Flat], start: str | None = None) -> Blend:
    """The weights of a sum of models.

    Args:
        flats: the same rows as each model sees them; numbers of `regress` have the mean 0.
        start: the model that the sum begins with; None: the one of the least loss.
    """
    flats = {name: _thinned(flat) for name, flat in flats.items()}
    names = list(flats)
    scales = {name: 1 / _temperature(flat) for name, flat in flats.items()}
    loss = _Loss(flats, scales)
    if start is None:
        alone = [loss.at(one)[0] for one in np.eye(len(names))]
        start = names[int(np.argmin(alone))]
    prior = np.array([float(name == start) for name in names])
    weights = loss.least(prior)
    moved = weights * loss.spreads  # by how much each moves the sum
    # A model that counts for almost nothing costs time and tells nothing.
    weights = np.where(moved < _LEAST * moved.sum(), 0.0, weights)
    if not moved.any():  # nothing is better than chance on these rows
        weights, moved = prior, prior
    found = {name: place for place, name in enumerate(names) if weights[place] > 0}
    total = float(sum(moved[place] for place in found.values()))
    return Blend(
        {name: float(moved[place]) / total for name, place in found.items()},
        {name: float(weights[place]) * scales[name] for name, place in found.items()},
    )


def _thinned(flat: Flat) -> Flat:
    """Every so many rows, where there are more than a weight can need."""
    every = -(-flat.logits.size // _LARGEST)
    if every == 1:
        return flat
    rows = slice(None, None, every)
    return replace(
        flat,
        truth=flat.truth[rows],
        logits=flat.logits[rows],
        group=flat.group[rows],
        weight=flat.weight[rows],
    )


def _temperature(flat: Flat) -> float:
    return 1.0 if flat.task == "regress" else fit_temperature(flat)


class _Loss:
    """The loss of a weighted sum of logits: of all pairs together, not their mean.

    Args:
        flats: the same rows as each of the K models sees them.
        scales: what the logits of each are multiplied with first.
    """

    def __init__(self, flats: Mapping[str, Flat], scales: Mapping[str, float]) -> None:
        first = next(iter(flats.values()))
        self.first = first
        self.logits = np.stack([flat.logits * scales[name] for name, flat in flats.items()])
        distances = self.logits - self.logits.mean(axis=1, keepdims=True)
        self.spreads: Floats = np.sqrt((distances**2).mean(axis=(1, 2)))  # [K]
        # Tokens of one text are no independent witnesses: each pair counts once.
        pairs = first.groups if first.task == "tag" else len(first.group)
        self.weight = first.weight * (pairs / first.weight.sum())
        if first.task == "regress":  # the squares in units of the noise
            errors = (self.logits[:, :, 0] - first.truth) ** 2 @ self.weight
            self.weight = self.weight * (pairs / max(float(errors.min()), 1e-12))

    def at(self, weights: Floats) -> tuple[float, Floats]:
        """Loss and its gradient [K]."""
        total = np.tensordot(weights, self.logits, axes=1)  # [m, C]
        task, truth, row = self.first.task, self.first.truth, self.weight
        if task == "regress":
            error = total[:, 0] - truth
            slope = error[:, None] * row[:, None]
            return float(0.5 * error**2 @ row), self._along(slope)
        chance = probabilities(task, total)
        if task in ("multilabel", "match"):
            wanted = truth.reshape(chance.shape).astype(np.float64)
            losses = np.logaddexp(0, np.where(wanted > 0.5, -total, total)).sum(axis=1)
        else:
            wanted = np.zeros_like(chance)
            wanted[np.arange(len(truth)), truth.astype(np.int64)] = 1.0
            losses = -np.log(np.maximum((chance * wanted).sum(axis=1), 1e-300))
        return float(losses @ row), self._along((chance - wanted) * row[:, None])

    def _along(self, slope: Floats) -> Floats:
        gradient: Floats = np.einsum("kmc,mc->k", self.logits, slope)
        return gradient

    def least(self, prior: Floats) -> Floats:
        """The weights of the least loss with the prior, none below 0; the problem is convex.

        Steps down the gradient, cut off at 0; the length of a step is halved until the loss
        falls as a parabola of that width would.
        """

        def value(weights: Floats) -> tuple[float, Floats]:
            loss, gradient = self.at(weights)
            off = (weights - prior) / _SPREAD
            return loss + 0.5 * float(off @ off), gradient + off / _SPREAD

        weights, step = prior, 1.0
        loss, gradient = value(weights)
        for _ in range(_STEPS):
            while True:
                moved = np.maximum(0.0, weights - step * gradient)
                change = moved - weights
                reached, slope = value(moved)
                bound = loss + float(gradient @ change) + float(change @ change) / (2 * step)
                if reached <= bound + 1e-9 * abs(loss) or step < 1e-12:
                    break
                step /= 2
            weights, loss, gradient = moved, reached, slope
            if np.abs(change).max() < _SETTLED:
                break
            step *= 1.5
        return weights
