"""recall@k of `match`: is the own image among the k that a text is said to belong to most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusecli.training.model_protocol import Model, PairTable

Rows = NDArray[np.int64]

MOST_CANDIDATES = 256
RANKS = (1, 5, 10)


def candidates(table: PairTable, rows: Rows, seed: int, most: int = MOST_CANDIDATES) -> Rows:
    """Pairs of the part with different images and different texts, at most so many.

    Two pairs of one image would make two right answers.
    """
    generator = np.random.default_rng([seed, 67867967])
    images: set[str] = set()
    texts: set[str] = set()
    chosen: list[int] = []
    for row in generator.permutation(np.sort(rows)).tolist():
        if table.image_key[row] in images or table.text_key[row] in texts:
            continue
        images.add(table.image_key[row])
        texts.add(table.text_key[row])
        chosen.append(row)
        if len(chosen) == most:
            break
    return np.sort(np.array(chosen, np.int64))


def recall(model: Model, rows: Rows, ranks: Sequence[int] = RANKS) -> dict[str, float | int]:
    """recall@k in both directions over all texts and images of some pairs.

    Of images that score as high as the own one, half are counted as above it.
    """
    scores = model.cross_logits(rows, rows)[:, :, 0].astype(np.float64)  # [texts, images]
    found: dict[str, float | int] = {"candidates": len(rows)}
    for direction, table in (("text_to_image", scores), ("image_to_text", scores.T)):
        own = np.diagonal(table)[:, None]
        above = (table > own).sum(axis=1) + ((table == own).sum(axis=1) - 1) / 2
        for k in ranks:
            if k < len(rows):
                found[f"{direction}_recall@{k}"] = float((above < k).mean())
    return found
