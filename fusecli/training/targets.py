"""What a model is to learn: one target a pair, in the order of the pairs. Plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fusecli.training.literals import Task as Task

TASKS: tuple[Task, ...] = get_args(Task)

IGNORED = -1  # a tag of a token that has none: padding, or null in the labels


@dataclass(frozen=True)
class Targets:
    """The targets of n pairs.

    Attributes:
        task: what is learnt.
        names: of the C classes, labels or tags, in the order of the logits; empty for `regress`
            and `match`.
        values: `classify` int64 [n] numbers of classes; `multilabel` float32 [n, C] of 0 and 1;
            `regress` float32 [n]; `tag` int64 [n, Tmax], `IGNORED` where a token has none;
            `match` int64 [n], all 1: every pair belongs together.
        weight: float32 [n], how much each pair counts in the loss and in the metrics, or None.
        group: a name a pair of what must not be divided, or None.
        split: "train", "validation" or "test" a pair, or None: not given.
    """

    task: Task
    names: tuple[str, ...]
    values: NDArray[np.int64] | NDArray[np.float32]
    weight: NDArray[np.float32] | None = None
    group: tuple[str, ...] | None = None
    split: tuple[str, ...] | None = None

    @property
    def n(self) -> int:
        """How many pairs."""
        return len(self.values)

    @property
    def outputs(self) -> int:
        """C, how many logits a model gives for a pair (or a token, for `tag`)."""
        return len(self.names) or 1

    @property
    def per_token(self) -> bool:
        """Whether each text token has a target of its own."""
        return self.task == "tag"

    def weights(self) -> NDArray[np.float32]:
        """`weight`, or ones. [n]"""
        return np.ones(self.n, np.float32) if self.weight is None else self.weight

    def take(self, rows: NDArray[np.int64]) -> Targets:
        """The targets of some rows, in their order."""
        return replace(
            self,
            values=self.values[rows],
            weight=None if self.weight is None else self.weight[rows],
            group=None if self.group is None else tuple(self.group[i] for i in rows.tolist()),
            split=None if self.split is None else tuple(self.split[i] for i in rows.tolist()),
        )
