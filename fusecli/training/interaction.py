"""What interaction is worth in a model, and how much it relies on each side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.training.bootstrap import Interval, draw_headlines, headline, interval
from fusecli.training.emap import emap
from fusecli.training.flat import Headline, flatten, headline_of
from fusecli.training.model_protocol import Model, PairTable
from fusecli.training.shuffle import Shuffled, shuffled_metric
from fusecli.training.targets import Targets

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Interaction:
    """One model, taken apart.

    Attributes:
        headline: the metric.
        model: its value, on the pairs that EMAP was computed for.
        additive: that of the best additive approximation of the model.
        worth: model minus additive, on the same draws of groups.
        exact: whether EMAP is over all images and texts of the part, or over a sample.
        pairs: that it was computed for.
        images, texts: the metric with the images, or the texts, shuffled across groups; None
            where there is only one group, and for the texts of `tag`.
    """

    headline: Headline
    model: float
    additive: float | None
    worth: Interval | None
    exact: bool
    pairs: int
    images: Shuffled | None
    texts: Shuffled | None


def take_apart(
    model: Model, table: PairTable, targets: Targets, rows: Rows, groups: Rows, seed: int
) -> Interaction:
    """EMAP and shuffles of a model on a part; not for `match`, which is interaction alone.

    Args:
        model: the fusion.
        table: of all pairs.
        targets: of all pairs.
        rows: int64 [m], the part.
        groups: int64 [n], of all pairs.
        seed: of samples, shuffles and draws.
    """
    found = emap(model, table, rows, seed, per_token=targets.per_token)
    own, own_groups = targets.take(found.rows), groups[found.rows]
    flat = flatten(own, model.logits(found.rows), own_groups)
    additive = flatten(own, found.logits, own_groups)
    drawn = draw_headlines([flat, additive], seed)
    with_it, without = headline(flat), headline(additive)
    part, part_groups = targets.take(rows), groups[rows]
    return Interaction(
        headline_of(targets.task, len(targets.names)),
        with_it,
        without,
        interval(with_it - without, drawn[0] - drawn[1]),
        found.exact and len(found.rows) == len(rows),
        len(found.rows),
        shuffled_metric(model, part, rows, part_groups, "image", seed),
        None
        if targets.per_token
        else shuffled_metric(model, part, rows, part_groups, "text", seed),
    )
