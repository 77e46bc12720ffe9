"""One vector for the tokens of each sample: their mean, maximum or first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.literals import Pool


def pool_tokens(
    rows: NDArray[np.float32], mask: NDArray[np.bool_] | None, how: Pool
) -> NDArray[np.float32]:
    """One vector for the tokens of each sample.

    Args:
        rows: `[n, T, D]`.
        mask: `[n, T]` or `[1, T]`, true for real tokens; None if all are.
        how: "mean" or "max" over the real tokens, or the "first" real one.

    Returns:
        `[n, D]`; zero where no token is real.
    """
    pooled: NDArray[np.float32]
    if mask is None or mask.all():
        if how == "mean":
            pooled = rows.mean(axis=1)
        else:
            pooled = rows.max(axis=1) if how == "max" else rows[:, 0].copy()
        return pooled
    mask = np.broadcast_to(mask, rows.shape[:2])
    if how == "first":
        pooled = rows[np.arange(len(rows)), mask.argmax(axis=1)]
    elif how == "mean":
        # What is stored in padding, NaN included, must not matter.
        total = np.where(mask[..., None], rows, np.float32(0)).sum(axis=1)
        pooled = total / np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
    else:
        pooled = np.where(mask[..., None], rows, np.float32(-np.inf)).max(axis=1)
    return np.where(mask.any(axis=1, keepdims=True), pooled, np.float32(0))
