"""What the inner validation part fits after training: a temperature and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.training.flat import Flat, logsumexp, probabilities

Floats = NDArray[np.float64]

_COLDEST, _HOTTEST = 0.05, 20.0
_STEPS = 60  # of the search; each makes the range 0.618 times as large


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities, and how probabilities become yes or no.

    Attributes:
        temperature: logits are divided by it (Guo et al. 2017, arXiv:1706.04599).
        thresholds: the answer is yes at this probability or above. One for two classes (of the
            second class) and for `match`, one for each label for `multilabel`, none otherwise.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


def calibrate(flat: Flat) -> Calibration:
    """Fit a temperature and thresholds on the validation rows."""
    if flat.task == "regress" or not len(flat.group):
        return Calibration()
    temperature = fit_temperature(flat)
    return Calibration(temperature, _thresholds(flat, temperature))


def fit_temperature(flat: Flat) -> float:
    """The temperature of the least log loss, by a golden-section search over its logarithm."""
    low, high = np.log(_COLDEST), np.log(_HOTTEST)
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = log_loss(flat, np.exp(left)), log_loss(flat, np.exp(right))
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = log_loss(flat, np.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = log_loss(flat, np.exp(right))
    best = float(np.exp((low + high) / 2))
    # Logits that are all alike have no temperature: the loss is the same at all of them.
    return best if log_loss(flat, best) < log_loss(flat, 1.0) - 1e-9 else 1.0


def log_loss(flat: Flat, temperature: float = 1.0) -> float:
    """Mean negative log probability of the truth; over all labels for `multilabel`."""
    scaled = flat.logits / temperature
    if flat.task in ("multilabel", "match"):
        truth = flat.truth if flat.task == "multilabel" else flat.truth[:, None]
        losses = np.logaddexp(0, np.where(truth > 0.5, -scaled, scaled)).mean(axis=1)
    else:
        losses = logsumexp(scaled) - scaled[np.arange(len(scaled)), flat.truth.astype(np.int64)]
    return float(np.average(losses, weights=flat.weight))


def _thresholds(flat: Flat, temperature: float) -> tuple[float, ...]:
    chances = probabilities(flat.task, flat.logits, temperature)
    if flat.task == "multilabel":
        return tuple(
            best_f1(chances[:, c], flat.truth[:, c] > 0.5, flat.weight)
            for c in range(len(flat.names))
        )
    if flat.task == "match":
        return (best_balanced_accuracy(chances[:, 0], flat.truth == 1, flat.weight),)
    if len(flat.names) == 2:
        return (best_balanced_accuracy(chances[:, 1], flat.truth == 1, flat.weight),)
    return ()


def best_balanced_accuracy(chance: Floats, positive: NDArray[np.bool_], weight: Floats) -> float:
    """The threshold with the best mean, over both classes, of the share of right answers."""
    cuts, hits, alarms = _cuts(chance, positive, weight)
    yes, no = hits[0], alarms[0]
    if not yes or not no:
        return 0.5
    return _middle(cuts, hits / yes + 1 - alarms / no)


def best_f1(chance: Floats, positive: NDArray[np.bool_], weight: Floats) -> float:
    """The threshold with the largest F1 of the positive class."""
    cuts, hits, alarms = _cuts(chance, positive, weight)
    if not hits[0]:
        return 0.5
    return _middle(cuts, 2 * hits / (hits[0] + hits + alarms))


def _cuts(
    chance: Floats, positive: NDArray[np.bool_], weight: Floats
) -> tuple[Floats, Floats, Floats]:
    """Thresholds between neighbouring probabilities, and the weight of the positive and of the
    negative rows at or above each. All rows are above the first threshold."""
    values, inverse = np.unique(chance, return_inverse=True)
    inverse = inverse.reshape(-1)
    yes = np.bincount(inverse, weight * positive, len(values))
    no = np.bincount(inverse, weight * ~positive, len(values))
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    return cuts, yes[::-1].cumsum()[::-1], no[::-1].cumsum()[::-1]


def _middle(cuts: Floats, gain: Floats) -> float:
    """Of the best thresholds the one nearest to one half."""
    best = cuts[gain >= gain.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
