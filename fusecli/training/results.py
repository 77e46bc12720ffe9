"""What a part of the pairs says about the models: metrics, intervals, differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusecli.training.bootstrap import DRAWS, Interval, draw_headlines, headline, interval
from fusecli.training.calibration import Calibration
from fusecli.training.flat import Flat, Headline, headline_of
from fusecli.training.literals import ScoredPart
from fusecli.training.metrics import Metrics, measure
from fusecli.training.targets import Task

FUSION, TEXT, IMAGE, ADDITIVE = "fusion", "text only", "image only", "additive"
CONCAT, MAJORITY = "concat + MLP", "majority"
ORDER = (MAJORITY, TEXT, IMAGE, ADDITIVE, CONCAT, FUSION)  # of the table


@dataclass(frozen=True)
class Measured:
    """What is known of one model before it is compared.

    Attributes:
        name: of the line of the table.
        flat: its rows of the part.
        calibration: from the validation part.
        variant: the candidate that was taken.
        validation: the headline on the validation part, or None.
        seeds: the headline of the network of each seed alone; empty where there is one.
        folds: the headline on each fold; empty without folds.
        shares: how much its own networks and other lines of the table count, of 1; empty where
            it is its own networks alone.
        network: the headline of its own networks alone, where others count; else None.
    """

    name: str
    flat: Flat
    calibration: Calibration
    variant: str = ""
    validation: float | None = None
    seeds: tuple[float, ...] = ()
    folds: tuple[float, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    network: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """One line of the table.

    Attributes:
        name, variant, validation, seeds, folds, shares, network: as `Measured` has them.
        headline: the metric of the verdict with its interval.
        metrics: all others.
        calibration: how its logits become probabilities.
    """

    name: str
    variant: str
    validation: float | None
    seeds: tuple[float, ...]
    folds: tuple[float, ...]
    headline: Interval
    metrics: Metrics
    calibration: Calibration
    shares: dict[str, float] = field(default_factory=dict)
    network: float | None = None


@dataclass(frozen=True)
class Contrast:
    """The headline of one model minus that of another, on the same draws."""

    model: str
    minus: str
    difference: Interval


@dataclass(frozen=True)
class PartResult:
    """All models on one part.

    Attributes:
        part: which pairs; "given" are those of `evaluate`.
        task: what is learnt.
        headline: the metric of the verdict.
        positive: the class that a two-class AUC is about; "" otherwise.
        pairs, rows, groups: how many; rows are tokens for `tag`.
        models: one a line of the table.
        contrasts: the fusion minus each other model.
        seen_texts: share of the part's texts that were seen in training, or None.
        retrieval: recall@k of each model for `match`, by direction.
    """

    part: ScoredPart
    task: Task
    headline: Headline
    positive: str
    pairs: int
    rows: int
    groups: int
    models: list[ModelResult]
    contrasts: list[Contrast]
    seen_texts: float | None = None
    retrieval: dict[str, Metrics] = field(default_factory=dict)

    def model(self, name: str) -> ModelResult | None:
        """A line of the table by its name."""
        return next((model for model in self.models if model.name == name), None)

    def contrast(self, minus: str) -> Contrast | None:
        """The fusion minus another model."""
        return next((one for one in self.contrasts if one.minus == minus), None)


def compare(
    part: ScoredPart,
    models: Sequence[Measured],
    pairs: int,
    seed: int,
    seen_texts: float | None = None,
    draws: int = DRAWS,
) -> PartResult:
    """Measure models on the same rows, with the same draws of groups for all of them.

    Args:
        part: its name.
        models: the rows as each model sees them.
        pairs: how many pairs the rows are of.
        seed: of the draws.
        seen_texts: share of the texts that were seen in training.
        draws: of the bootstrap.
    """
    first = models[0].flat
    drawn = draw_headlines([model.flat for model in models], seed, draws)
    values = [headline(model.flat) for model in models]
    intervals = [interval(value, own) for value, own in zip(values, drawn, strict=True)]
    results = [_result(model, one) for model, one in zip(models, intervals, strict=True)]
    names = [model.name for model in models]
    contrasts = []
    if FUSION in names:
        fusion = names.index(FUSION)
        contrasts = [
            Contrast(FUSION, name, interval(values[fusion] - value, drawn[fusion] - own))
            for name, value, own in zip(names, values, drawn, strict=True)
            if name != FUSION
        ]
    binary = first.task in ("classify", "tag") and len(first.names) == 2
    return PartResult(
        part,
        first.task,
        headline_of(first.task, len(first.names)),
        first.names[1] if binary else "",
        pairs,
        len(first.group),
        first.groups,
        results,
        contrasts,
        seen_texts,
    )


def _result(model: Measured, headline: Interval) -> ModelResult:
    return ModelResult(
        model.name,
        model.variant,
        model.validation,
        model.seeds,
        model.folds,
        headline,
        measure(model.flat, model.calibration),
        model.calibration,
        model.shares,
        model.network,
    )


def join_flats(flats: Sequence[Flat], groups: NDArray[np.int64]) -> Flat:
    """Rows of several folds as one part.

    Args:
        flats: of the folds.
        groups: int64, of the rows of all folds, in their order; any numbers.
    """
    first = flats[0]
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return Flat(
        first.task,
        first.names,
        np.concatenate([flat.truth for flat in flats]),
        np.concatenate([flat.logits for flat in flats]),
        numbers,
        np.concatenate([flat.weight for flat in flats]),
    )
