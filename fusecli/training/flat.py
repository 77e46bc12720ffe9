"""Targets and logits of a part as rows of one kind, from which every metric is computed.

A row is a pair; for `tag` a token that has a tag; for `match` a text with its own image or with
another one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusecli.training.targets import IGNORED, Targets, Task

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

Headline = Literal["AUC", "accuracy", "R2"]


@dataclass(frozen=True)
class Flat:
    """What a model predicts for m rows, and the true values.

    Attributes:
        task: what is learnt.
        names: of the C classes.
        truth: `classify`, `tag` and `match` int64 [m]; `multilabel` float64 [m, C]; `regress`
            float64 [m].
        logits: float64 [m, C]; for `regress` and `match` [m, 1].
        group: int64 [m], from 0; rows of one group are drawn together.
        weight: float64 [m].
    """

    task: Task
    names: tuple[str, ...]
    truth: NDArray[np.int64] | Floats
    logits: Floats
    group: Rows
    weight: Floats

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    def with_logits(self, logits: NDArray[np.floating]) -> Flat:
        """The same rows as another model sees them: logits [m, C] of the flat rows."""
        return replace(self, logits=logits.astype(np.float64))


def flatten(targets: Targets, logits: NDArray[np.floating], groups: Rows) -> Flat:
    """Rows of a part.

    Args:
        targets: of the n pairs of the part.
        logits: [n, C], for `tag` [n, Tmax, C]; for `match` [2 n, 1], the pairs with their own
            images first and then with others.
        groups: int64 [n], any numbers.
    """
    number = np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.int64)
    weight = targets.weights().astype(np.float64)
    truth = targets.values
    if targets.task == "match":
        truth = np.repeat(np.array([1, 0], np.int64), targets.n)
        number, weight = np.tile(number, 2), np.tile(weight, 2)
    if targets.task == "tag":
        tagged = targets.values[:, : logits.shape[1]] != IGNORED
        pair, _ = np.nonzero(tagged)
        truth = targets.values[:, : logits.shape[1]][tagged]
        logits, number, weight = logits[tagged], number[pair], weight[pair]
    exact = targets.task in ("multilabel", "regress")
    return Flat(
        targets.task,
        targets.names,
        truth.astype(np.float64) if exact else truth.astype(np.int64),
        logits.astype(np.float64),
        number,
        weight,
    )


def flat_logits(targets: Targets, logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Logits of the rows that `flatten` makes: of tokens with a tag only, for `tag`."""
    if targets.task != "tag":
        return logits
    tagged = targets.values[:, : logits.shape[1]] != IGNORED
    picked: NDArray[np.floating] = logits[tagged]
    return picked


def headline_of(task: Task, classes: int) -> Headline:
    """The one metric that a verdict is about.

    R2 for numbers; accuracy for more than two classes; else the area under the ROC curve, for
    `multilabel` the mean over labels.
    """
    if task == "regress":
        return "R2"
    if task in ("classify", "tag") and classes > 2:
        return "accuracy"
    return "AUC"


def positive_scores(flat: Flat) -> list[tuple[Floats, NDArray[np.bool_], str]]:
    """Score, truth and name of each yes-or-no question in the rows.

    One for two classes (the second is "yes") and for `match`, one a label for `multilabel`, one
    a class against the others for more than two classes.
    """
    if flat.task == "match":
        return [(flat.logits[:, 0], flat.truth == 1, "belongs together")]
    if flat.task == "multilabel":
        return [
            (flat.logits[:, c], flat.truth[:, c] > 0.5, name) for c, name in enumerate(flat.names)
        ]
    if len(flat.names) == 2:
        return [(flat.logits[:, 1] - flat.logits[:, 0], flat.truth == 1, flat.names[1])]
    others = flat.logits - logsumexp(flat.logits)[:, None]
    return [(others[:, c], flat.truth == c, name) for c, name in enumerate(flat.names)]


def logsumexp(logits: Floats) -> Floats:
    """Over the last axis. [..., C] to [...]"""
    largest = logits.max(axis=-1)
    sums: Floats = largest + np.log(np.exp(logits - largest[..., None]).sum(axis=-1))
    return sums


def probabilities(task: Task, logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Probabilities of logits, of the same shape; a number stays as it is.

    Softmax over classes and tags, a sigmoid for each label and for `match`.
    """
    exact = logits.astype(np.float64)
    if task == "regress":
        return exact
    scaled = exact / temperature
    if task in ("multilabel", "match"):
        share: Floats = np.exp(-np.logaddexp(0, -scaled))
        return share
    of_classes: Floats = np.exp(scaled - logsumexp(scaled)[..., None])
    return of_classes
