"""`curves.png` and `comparison.png`; matplotlib (extra `plot`) is imported when they are drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusecli.training.results import FUSION, PartResult

if TYPE_CHECKING:
    from fusecli.training.fitted import Fitted

_DPI = 130
_STRONG, _PALE, _LINE = "#1b6ca8", "#8a8f98", "#d5d8dc"


def _figure(width: float, height: float) -> Any:
    """A figure without global state, or None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    """The same bytes for the same figure: no date, no version."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def draw_comparison(result: PartResult) -> bytes | None:
    """Every model's headline with its interval; None without matplotlib."""
    models = [model for model in result.models if math.isfinite(model.headline.value)]
    figure = _figure(7.2, 1.3 + 0.42 * len(models))
    if figure is None:
        return None
    axes = figure.subplots()
    for place, model in enumerate(reversed(models)):
        value = model.headline
        colour = _STRONG if model.name == FUSION else _PALE
        known = math.isfinite(value.low)
        if known:
            axes.plot([value.low, value.high], [place, place], color=colour, lw=2.5, zorder=2)
        axes.plot([value.value], [place], "o", color=colour, ms=7, zorder=3)
        at = value.high if known else value.value
        axes.annotate(
            f"{value.value:.3f}", (at, place), xytext=(7, 0), textcoords="offset points",
            va="center", fontsize=9, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(models)), [model.name for model in reversed(models)])
    axes.set_ylim(-0.6, len(models) - 0.4)
    axes.margins(x=0.12)
    chance = 0.5 if result.headline == "AUC" else None
    if chance is not None:
        axes.axvline(chance, color=_LINE, lw=1, zorder=1)
    axes.grid(axis="x", color=_LINE, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{result.headline} on the {result.part} part, with the 95 % interval")
    axes.set_title(f"{result.pairs:,} pairs in {result.groups:,} groups", fontsize=10, loc="left")
    return _png(figure)


def draw_curves(fitted: Sequence[Fitted]) -> bytes | None:
    """Validation score and training loss of every model by epoch; None without matplotlib."""
    trained = [model for model in fitted if any(model.info.history.values())]
    figure = _figure(9.5, 4.2)
    if figure is None:
        return None
    left, right = figure.subplots(1, 2)
    name = "score"
    for number, model in enumerate(trained):
        strong = model.name == FUSION
        style = {"color": _STRONG if strong else f"C{number + 1}", "lw": 2.2 if strong else 1.3}
        scores, losses = _by_epoch(model)
        name = model.info.score_name or name
        left.plot(list(scores), list(scores.values()), label=model.name, **style)
        right.plot(list(losses), list(losses.values()), label=model.name, **style)
    for axes, what in ((left, f"validation {name}"), (right, "training loss")):
        axes.set_xlabel("epoch")
        axes.set_title(what, fontsize=10, loc="left")
        axes.grid(color=_LINE, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if trained:
        right.legend(frameon=False, fontsize=9)
    return _png(figure)


def _by_epoch(model: Fitted) -> tuple[dict[int, float], dict[int, float]]:
    """Means over the jobs (folds, seeds) of a model: validation score and training loss."""
    scores: dict[int, list[float]] = {}
    losses: dict[int, list[float]] = {}
    for records in model.info.history.values():
        for record in records:
            losses.setdefault(record.epoch, []).append(record.train_loss)
            if record.score is not None:
                scores.setdefault(record.epoch, []).append(record.score)
    return _means(scores), _means(losses)


def _means(values: dict[int, list[float]]) -> dict[int, float]:
    return {epoch: sum(found) / len(found) for epoch, found in sorted(values.items())}
