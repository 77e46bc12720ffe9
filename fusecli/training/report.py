"""The table, `metrics.json` and `report.md`: the same numbers for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusecli.errors import counted
from fusecli.training.blend import said_shares
from fusecli.training.bootstrap import DRAWS, Interval
from fusecli.training.interaction import Interaction
from fusecli.training.results import ModelResult, PartResult
from fusecli.training.shuffle import Shuffled
from fusecli.training.threshold_notes import accuracy_said
from fusecli.training.verdict import interaction_sentences, plain, signed, verdict

FORMAT = 1  # of metrics.json; a key that is renamed or dropped makes it 2

_COLUMNS = {
    "classify": ("accuracy", "balanced_accuracy", "f1", "mcc", "log_loss"),
    "multilabel": ("average_precision", "accuracy", "f1", "log_loss"),
    "regress": ("mae", "rmse", "spearman"),
    "match": ("average_precision", "accuracy", "log_loss"),
}
_TWO_CLASSES = ("average_precision", "accuracy", "balanced_accuracy", "f1", "log_loss")
_SHORT = {
    "average_precision": "av. prec.",
    "accuracy": "accuracy",
    "balanced_accuracy": "bal. acc.",
    "f1": "F1",
    "mcc": "MCC",
    "log_loss": "log loss",
    "mae": "MAE",
    "rmse": "RMSE",
    "spearman": "Spearman",
}


@dataclass(frozen=True)
class Facts:
    """What a report says beside the metrics.

    Attributes:
        title: the first line.
        names: of the classes.
        sizes: pairs of each part.
        notes: what was chosen and assumed, one sentence each.
    """

    title: str
    names: tuple[str, ...]
    sizes: dict[str, int]
    notes: tuple[str, ...] = ()


def table_rows(result: PartResult) -> list[list[str]]:
    """The table, a header and a line a model, as text."""
    columns = _COLUMNS["classify" if result.task == "tag" else result.task]
    if result.positive:
        columns = _TWO_CLASSES
    if result.headline == "accuracy":
        columns = tuple(name for name in columns if name != "accuracy")
    head = ["model", f"{result.headline} (95 %)", *(_SHORT[name] for name in columns)]
    recalls = [name for name in _recalls(result) if name.endswith(("@1", "@5"))]
    head += [name.replace("_recall", " R").replace("_to_", "→") for name in recalls]
    rows = [head]
    for model in result.models:
        value = model.headline
        cell = plain(value.value)
        if math.isfinite(value.low):
            cell += f" ({value.low:.3f} to {value.high:.3f})"
        found = result.retrieval.get(model.name, {})
        rows.append(
            [
                model.name,
                cell,
                *(_cell(model.metrics.get(name)) for name in columns),
                *(_cell(found.get(name)) for name in recalls),
            ]
        )
    return rows


def _recalls(result: PartResult) -> list[str]:
    for found in result.retrieval.values():
        return [name for name in found if "recall" in name]
    return []


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def sentences(result: PartResult, interaction: Interaction | None = None) -> list[str]:
    """What the numbers say, in order: the verdict, seeds, seen texts, interaction."""
    found = verdict(result)
    fusion = result.model("fusion")
    if fusion is not None and fusion.network is not None:
        found.append(_sum_sentence(result, fusion))
    if fusion is not None and len(fusion.seeds) > 1:
        low, high = min(fusion.seeds), max(fusion.seeds)
        subject = "the fusion" if fusion.network is None else "the fusion's network"
        found.append(
            f"one seed alone gives {subject} {result.headline} {plain(low)} to {plain(high)} "
            f"({len(fusion.seeds)} seeds). The table, predict and evaluate use the mean of their "
            "logits. fuse and batch --weights use the network of the first seed"
        )
    if fusion is not None and fusion.folds:
        mean = sum(fusion.folds) / len(fusion.folds)
        found.append(
            f"mean over {len(fusion.folds)} folds: {result.headline} {plain(mean)} "
            f"({plain(min(fusion.folds))} to {plain(max(fusion.folds))}); the table pools them"
        )
    if result.seen_texts is not None:
        found.append(
            f"{100 * result.seen_texts:.0f} % of the {result.part} texts were seen in training"
        )
    if interaction is not None:
        found += interaction_sentences(interaction)
    return found


def _sum_sentence(result: PartResult, fusion: ModelResult) -> str:
    """What counts in the fusion's line, and what its network reaches without the others."""
    assert fusion.network is not None
    parts = said_shares(fusion.name, fusion.shares)
    return (
        f"the fusion of the table is a weighted sum: {parts}; its network alone gives "
        f"{result.headline} {plain(fusion.network)}, and fuse and batch --weights take the network "
        "alone"
    )


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """What is printed at the end, of the content of `metrics.json`: a table and sentences."""
    return [
        f"{metrics['part']} part: {counted(metrics['measured_pairs'], 'pair')} in "
        f"{counted(metrics['groups'], 'group')}",
        "",
        *aligned(metrics["table"]),
        "",
        *metrics["verdict"],
    ]


def metrics_json(
    result: PartResult, facts: Facts, interaction: Interaction | None = None
) -> dict[str, Any]:
    """The content of `metrics.json`; docs/training.md documents the keys."""
    found: dict[str, Any] = {
        "format": FORMAT,
        "task": result.task,
        "names": list(facts.names),
        "positive": result.positive or None,
        "headline": result.headline,
        "part": result.part,
        "pairs": facts.sizes,
        "measured_pairs": result.pairs,
        "rows": result.rows,
        "groups": result.groups,
        "draws": DRAWS,
        "seen_texts": result.seen_texts,
        "models": [
            {
                "name": model.name,
                "variant": model.variant or None,
                "headline": _interval(model.headline),
                "validation": _finite(model.validation),
                "seeds": [_finite(value) for value in model.seeds],
                "folds": [_finite(value) for value in model.folds],
                "shares": model.shares,
                "network": _finite(model.network),
                "temperature": model.calibration.temperature,
                "thresholds": list(model.calibration.thresholds),
                "metrics": model.metrics,
                "retrieval": result.retrieval.get(model.name),
            }
            for model in result.models
        ],
        "fusion_minus": {one.minus: _interval(one.difference) for one in result.contrasts},
        "interaction": None if interaction is None else _interaction(interaction),
        "table": table_rows(result),
        "verdict": sentences(result, interaction),
        "notes": list(facts.notes),
    }
    return found


def _interaction(found: Interaction) -> dict[str, Any]:
    return {
        "model": _finite(found.model),
        "emap": _finite(found.additive),
        "worth": None if found.worth is None else _interval(found.worth),
        "exact": found.exact,
        "pairs": found.pairs,
        "images_shuffled": _shuffled(found.images),
        "texts_shuffled": _shuffled(found.texts),
    }


def _shuffled(found: Shuffled | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "mean": _finite(found.mean),
        "lowest": _finite(found.lowest),
        "highest": _finite(found.highest),
        "times": found.times,
    }


def _interval(found: Interval) -> dict[str, float | None]:
    return {"value": _finite(found.value), "low": _finite(found.low), "high": _finite(found.high)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def as_json(content: dict[str, Any]) -> bytes:
    """The bytes of a JSON file, the same for the same content."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def report_md(result: PartResult, facts: Facts, interaction: Interaction | None = None) -> str:
    """`report.md`: verdict, table, differences, classes, confusion and notes."""
    sizes = ", ".join(f"{count:,} {part}" for part, count in facts.sizes.items())
    lines = [
        f"# {facts.title}",
        "",
        f"Task: {result.task}. Pairs: {sizes}. Everything below is measured on the {result.part} "
        f"part: {counted(result.pairs, 'pair')} in {counted(result.groups, 'group')}.",
    ]
    if result.positive:
        lines += ["", f"AUC, average precision and F1 are about the class `{result.positive}`."]
    lines += ["", "## Verdict", ""]
    lines += [f"- {sentence}" for sentence in sentences(result, interaction)]
    lines += ["", "## Models", "", *_markdown(table_rows(result))]
    if said := accuracy_said(metrics_json(result, facts)):
        lines += ["", f"{said[0].upper()}{said[1:]}."]
    lines += ["", *_differences(result), *_classes(result), *_confusion(result)]
    if facts.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in facts.notes), ""]
    return "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]


def _differences(result: PartResult) -> list[str]:
    if not result.contrasts:
        return []
    rows = [["fusion minus", result.headline, "95 %"]]
    for one in result.contrasts:
        found = one.difference
        known = math.isfinite(found.low)
        interval = f"{signed(found.low)} to {signed(found.high)}" if known else "unknown"
        rows.append([one.minus, signed(found.value), interval])
    return ["## Differences", "", *_markdown(rows), ""]


def _classes(result: PartResult) -> list[str]:
    fusion = result.model("fusion") or result.models[-1]
    classes = fusion.metrics.get("per_class")
    if not classes:
        return []
    keys = ("rows", "precision", "recall", "f1", "auc", "average_precision")
    names = ("rows", "precision", "recall", "F1", "AUC", "av. prec.")
    rows = [["class", *names]]
    for one in classes:
        values = [one.get(key) for key in keys]
        rows.append([one["name"], str(values[0]), *map(_cell, values[1:])])
    return [f"## Classes, {fusion.name}", "", *_markdown(rows), ""]


def _confusion(result: PartResult) -> list[str]:
    fusion = result.model("fusion") or result.models[-1]
    found = fusion.metrics.get("confusion")
    if not found or len(found["names"]) > 12:
        return []
    rows = [["true \\ predicted", *found["names"]]]
    for name, counts in zip(found["names"], found["counts"], strict=True):
        rows.append([name, *(f"{count:g}" for count in counts)])
    return [f"## Confusion, {fusion.name}", "", *_markdown(rows), ""]
