"""Fitted models on a part of the pairs: logits, calibration, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, counted, shortened
from fusecli.training.bootstrap import headline
from fusecli.training.calibration import Calibration, calibrate
from fusecli.training.examples import Examples
from fusecli.training.fitted import Fitted
from fusecli.training.flat import Flat, flatten
from fusecli.training.results import Measured
from fusecli.training.retrieval import candidates, recall
from fusecli.training.shuffle import with_negatives
from fusecli.training.targets import Targets

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Rows on which models are compared.

    Attributes:
        examples, targets, groups: of all pairs.
        rows: int64 [m], of the part.
        seed: of the wrong images of `match`.
        device: where single seeds are computed.
    """

    examples: Examples
    targets: Targets
    groups: Rows
    rows: Rows
    seed: int
    device: str

    def logits(self, model: Fitted) -> NDArray[np.float32]:
        """What a model says of the rows; for `match` [2 m, 1], wrong images last."""
        if self.targets.task != "match":
            return model.logits(self.rows)
        found = with_negatives(model, self.rows, self.groups[self.rows], self.seed)
        assert found is not None, "a part that is measured has more than one group"
        return found

    def flat(self, logits: NDArray[np.floating]) -> Flat:
        """The rows as one model sees them."""
        return flatten(self.targets.take(self.rows), logits, self.groups[self.rows])


def calibration_of(model: Fitted, targets: Targets) -> Calibration:
    """Temperature and thresholds from the logits that the model gives for rows it has not seen."""
    return calibrate(_tuning(model, targets))


def validation_score(model: Fitted, targets: Targets) -> float:
    """The headline on the validation rows."""
    return headline(_tuning(model, targets))


def _tuning(model: Fitted, targets: Targets) -> Flat:
    rows = model.tuning_rows
    return flatten(targets.take(rows), model.tuning_logits, np.arange(len(rows)))


def measured(
    model: Fitted, part: Part, logits: NDArray[np.float32], calibration: Calibration
) -> Measured:
    """One model on the part, with what each of its seeds reaches alone."""
    return Measured(
        model.name,
        part.flat(logits),
        calibration,
        model.info.variant,
        validation_score(model, part.targets),
        seed_headlines(model, part),
        shares=model.shares,
        network=network_headline(model, part),
    )


def network_headline(model: Fitted, part: Part) -> float | None:
    """The headline of a line's own networks, where other lines count in it; else None."""
    if model.shares.keys() <= {model.name}:
        return None
    return headline(part.flat(part.logits(model.network())))


def seed_headlines(model: Fitted, part: Part) -> tuple[float, ...]:
    """The headline of the network of each seed alone; empty where there is only one."""
    if len(model.members) < 2:
        return ()
    alone = (model.alone(number) for number in range(len(model.members)))
    return tuple(headline(part.flat(part.logits(one))) for one in alone)


def retrieval_of(models: Sequence[Fitted], part: Part) -> dict[str, dict[str, float | int]]:
    """recall@k of every model over the same candidates; empty but for `match`."""
    if part.targets.task != "match":
        return {}
    rows = candidates(part.examples, part.rows, part.seed)
    return {model.name: recall(model, rows) for model in models}


def refuse_nonfinite(
    path: str, name: str, ids: Sequence[str], logits: NDArray[np.floating]
) -> None:
    """Refuse logits that are no numbers: their answers and metrics would look like some.

    Args:
        path: of the run.
        name: of the model.
        ids: of the pairs.
        logits: `[m, ...]` of the pairs; for `match` `[2 m, 1]`.

    Raises:
        FeatureFileError: NaN or infinity is among them.
    """
    wrong = np.flatnonzero(~np.isfinite(logits).reshape(len(logits), -1).all(axis=1))
    if len(wrong):
        pairs = len(np.unique(wrong % len(ids)))
        raise FeatureFileError(
            f"{path}: its model {name!r} gives NaN or infinity for "
            f"{counted(pairs, 'pair')}, the first is {shortened(ids[wrong[0] % len(ids)])!r}: "
            "the features are far larger than those it has learnt from, or its weights are "
            "damaged; compare these features with those it has learnt from: fusecli inspect "
            "--stats says how large features are"
        )
