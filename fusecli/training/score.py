"""The one number that early stopping and the choice between candidates look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.training.bootstrap import headline
from fusecli.training.flat import Flat, flatten, headline_of, probabilities
from fusecli.training.targets import Targets

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


def score_of(logits: Floats, targets: Targets, rows: Rows) -> tuple[float, str]:
    """Score of logits, higher is better, and its name.

    It is the metric of the verdict, with the weights of the labels. Where the rows do not have
    what that metric needs (AUC of one class only), it is minus the loss.

    Args:
        logits: `[N, C]`, for `tag` `[N, T, C]`; for `match` `[2 N, 1]`, own pairs first.
        targets: the labels.
        rows: int64 `[N]`.
    """
    flat = flatten(targets.take(rows), logits, np.arange(len(rows)))
    value = headline(flat)
    if np.isfinite(value):
        return value, headline_of(flat.task, len(flat.names))
    if flat.task == "regress":  # the same number in every row
        squares = (flat.logits[:, 0] - flat.truth) ** 2
        return -float(np.average(squares, weights=flat.weight)), "minus squared error"
    return -_log_loss(flat), "minus log loss"


def _log_loss(flat: Flat) -> float:
    """Mean of minus the log of the probability of what is true."""
    given = probabilities(flat.task, flat.logits)
    if flat.task in ("multilabel", "match"):
        truth = flat.truth.reshape(given.shape)
        given = np.where(truth > 0.5, given, 1 - given).clip(1e-12)
        losses = -np.log(given).mean(axis=1)
    else:
        losses = -np.log(given[np.arange(len(given)), flat.truth.astype(np.int64)].clip(1e-12))
    return float(np.average(losses, weights=flat.weight))
