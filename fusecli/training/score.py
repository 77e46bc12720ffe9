"""The one number that early stopping and the choice between candidates look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.training.targets import IGNORED, Targets

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


def score_of(logits: Floats, targets: Targets, rows: Rows) -> tuple[float, str]:
    """Score of logits, higher is better, and its name.

    Args:
        logits: `[N, C]`, for `tag` `[N, T, C]`; for `match` `[2 N, 1]`, own pairs first.
        targets: the labels.
        rows: int64 `[N]`.
    """
    if targets.task == "match":
        n = len(logits) // 2
        return auc(logits[:, 0], np.arange(len(logits)) < n), "AUC"
    values = targets.values[rows]
    if targets.task == "regress":
        return r2(logits[:, 0], values), "R2"
    if targets.task == "multilabel":
        both = [c for c in range(values.shape[1]) if 0 < values[:, c].sum() < len(values)]
        if both:
            return float(np.mean([auc(logits[:, c], values[:, c] > 0.5) for c in both])), "AUC"
        return -_binary_loss(logits, values), "minus log loss"
    if targets.task == "tag":
        values = values[:, : logits.shape[1]]
        real = values != IGNORED
        logits, values = logits[real], values[real]
    if logits.shape[1] == 2 and 0 < values.sum() < len(values):
        return auc(logits[:, 1] - logits[:, 0], values == 1), "AUC"
    return float((logits.argmax(axis=1) == values).mean()), "accuracy"


def auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive stands above a negative."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal scores share their mean rank
    hits = int(positive.sum())
    misses = len(positive) - hits
    return float((ranks[inverse][positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def r2(predicted: NDArray[Any], values: NDArray[Any]) -> float:
    """1 minus the mean squared error as a share of the variance."""
    spread = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((predicted - values) ** 2).sum()) / max(spread, 1e-12)


def _binary_loss(logits: Floats, values: NDArray[Any]) -> float:
    signed = np.where(values > 0.5, logits, -logits)
    return float(np.logaddexp(0, -signed).mean())
