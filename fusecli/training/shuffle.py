"""Wrong partners: what is left of a metric when the images, or the texts, are those of others.

The metric with shuffled images measures how much a model relies on them (the perceptual score of
Gat et al. 2021, arXiv:2110.14375), not what they are worth: a model that relies on images falls
below one that never saw any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.features.literals import Side
from fusecli.training.bootstrap import headline
from fusecli.training.flat import flatten
from fusecli.training.model_protocol import Model
from fusecli.training.targets import Targets

Rows = NDArray[np.int64]

TIMES = 5


@dataclass(frozen=True)
class Shuffled:
    """The metric with wrong partners, over several shuffles.

    Attributes:
        mean, lowest, highest: of the shuffles.
        times: how many there were.
    """

    mean: float
    lowest: float
    highest: float
    times: int


def other_rows(rows: Rows, groups: Rows, generator: np.random.Generator) -> Rows | None:
    """A partner from another group for each row; None where all are of one group.

    A random permutation; rows that meet their own group draw a new partner from the others.

    Args:
        rows: int64 [m].
        groups: int64 [m], of these rows.
        generator: draws the partners.
    """
    if len(np.unique(groups)) < 2:
        return None
    order = generator.permutation(len(rows))
    while True:
        same = np.flatnonzero(groups[order] == groups)
        if not len(same):
            return rows[order]
        order[same] = generator.integers(0, len(rows), len(same))


def shuffled_metric(
    model: Model,
    targets: Targets,
    rows: Rows,
    groups: Rows,
    side: Side,
    seed: int,
    times: int = TIMES,
) -> Shuffled | None:
    """The metric with the images or the texts shuffled across groups.

    Args:
        model: what is measured.
        targets: of the rows.
        rows: int64 [m], of the part.
        groups: int64 [m], of these rows.
        side: "image", or "text" (not for `tag`, whose labels belong to the text's tokens).
        seed: of the shuffles.
        times: how many.

    Returns:
        None where there is only one group.
    """
    values = []
    for number in range(times):
        generator = np.random.default_rng([seed, 15485863, number])
        partners = other_rows(rows, groups, generator)
        if partners is None:
            return None
        texts, images = (rows, partners) if side == "image" else (partners, rows)
        logits = model.logits(texts, images)
        values.append(headline(flatten(targets, logits, groups)))
    return Shuffled(float(np.mean(values)), min(values), max(values), times)


def with_negatives(model: Model, rows: Rows, groups: Rows, seed: int) -> NDArray[np.float32] | None:
    """Logits for `match`: of the pairs with their own images, then with others of the part.

    Returns:
        float32 [2 m, 1]; None where all rows are of one group.
    """
    partners = other_rows(rows, groups, np.random.default_rng([seed, 32452843]))
    if partners is None:
        return None
    return np.concatenate([model.logits(rows), model.logits(rows, partners)])
