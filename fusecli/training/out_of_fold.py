"""Logits of all pairs, each by models that have not learnt from it: the folds of `--folds`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusecli.training.bootstrap import headline
from fusecli.training.calibration import Calibration
from fusecli.training.fitted import Fitted
from fusecli.training.flat import Flat
from fusecli.training.results import Measured, join_flats
from fusecli.training.score_part import Part, measured
from fusecli.training.tables import ModelLogits
from fusecli.training.targets import IGNORED, Targets

Rows = NDArray[np.int64]


@dataclass
class _OfModel:
    """What the folds have given for one line of the table.

    Attributes:
        logits: float32 [n, C] or [n, T, C], of all pairs, divided by the temperature of the
            pair's fold.
    """

    logits: NDArray[np.float32]
    flats: list[Flat] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)


class OutOfFold:
    """Collects the held-out logits of the folds, by the line of the table.

    Logits of different models are brought to one scale before they are put together: they are
    divided by the temperature of their own model.

    Args:
        targets: the labels of all pairs.
        groups: int64 [n], of all pairs.
    """

    def __init__(self, targets: Targets, groups: Rows) -> None:
        self._targets, self._groups = targets, groups
        self._models: dict[str, _OfModel] = {}
        self._folds: list[Rows] = []

    def add(self, model: Fitted, part: Part, calibration: Calibration) -> None:
        """A model of a fold.

        Args:
            model: that was trained without the pairs of `part`.
            part: the pairs that the fold holds out.
            calibration: of the model.
        """
        rows = part.rows
        if not self._folds or self._folds[-1] is not rows:
            self._folds.append(rows)
        logits = part.logits(model)
        scaled = logits / np.float32(calibration.temperature)
        own = scaled[: len(rows)]  # of `match`, the pairs with their own images
        if model.name not in self._models:
            everybody = np.zeros((self._targets.n, *own.shape[1:]), np.float32)
            self._models[model.name] = _OfModel(everybody)
        found = self._models[model.name]
        found.logits[rows] = own
        found.flats.append(part.flat(scaled))
        found.measured.append(measured(model, part, logits, calibration))
        found.calibrations.append(calibration)

    def models(self) -> list[Measured]:
        """All folds of each model as one; its thresholds are the mean of the folds'."""
        groups = np.concatenate([self._groups_of(rows) for rows in self._folds])
        return [_joined(name, found, groups) for name, found in self._models.items()]

    def predictions(self) -> list[ModelLogits]:
        """The logits of all pairs by each model."""
        return [
            ModelLogits(name, found.logits, Calibration(1.0, found.calibrations[0].thresholds))
            for name, found in self._models.items()
        ]

    def _groups_of(self, rows: Rows) -> Rows:
        """Groups of the rows that `flatten` makes of the pairs of a fold."""
        groups = self._groups[rows]
        if self._targets.task == "match":
            return np.tile(groups, 2)
        if self._targets.task == "tag":
            return groups[np.nonzero(self._targets.values[rows] != IGNORED)[0]]
        return groups


def _joined(name: str, found: _OfModel, groups: Rows) -> Measured:
    thresholds = np.mean([c.thresholds for c in found.calibrations], axis=0).tolist()
    return Measured(
        name,
        join_flats(found.flats, groups),
        Calibration(1.0, tuple(thresholds)),
        ", ".join(dict.fromkeys(value.variant for value in found.measured)),
        None,
        (),
        tuple(headline(value.flat) for value in found.measured),
    )
