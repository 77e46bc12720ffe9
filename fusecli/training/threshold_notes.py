"""What is said of thresholds: which numbers of the table use them, and which labels they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusecli.errors import shortened
from fusecli.training.results import FUSION
from fusecli.training.targets import Task

_USUAL = 0.5
_WITH_THRESHOLD = ("bal. acc.", "F1", "MCC")  # columns of the table
_MOST_LISTED = 6


def labels_said(task: Task, names: Sequence[str], thresholds: Sequence[float]) -> str:
    """From which probability on `predict` writes a label; "" where it is one half.

    Args:
        task: of the run.
        names: of its classes.
        thresholds: of its fusion: one for two classes and for `match`, one a label for
            `multilabel`, else none.
    """
    if all(one == _USUAL for one in thresholds):
        return ""
    if task == "multilabel":
        each = [
            f"{shortened(name, 24)} where p({shortened(name, 24)}) is at least {one:.4g}"
            for name, one in zip(names[:_MOST_LISTED], thresholds, strict=False)
        ]
        more = ", ..." if len(names) > _MOST_LISTED else ""
        return f"labels: {', '.join(each)}{more}: the thresholds found in validation"
    label, chance = ("true", "probability") if task == "match" else _of_class(names)
    return (
        f"labels: {label} where {chance} is at least {thresholds[0]:.4g}, the threshold found "
        "in validation"
    )


def _of_class(names: Sequence[str]) -> tuple[str, str]:
    name = shortened(names[1], 40)
    return name, f"p({name})"


def accuracy_said(metrics: Mapping[str, Any]) -> str:
    """How the accuracy of the table goes with the labels that `predict` writes.

    Args:
        metrics: the content of a `metrics.json`, also of one that was read from a folder.

    Returns:
        A sentence; "" where no threshold but one half is used, or where the content is of
        another version and does not say it.
    """
    try:
        (fusion,) = (model for model in metrics["models"] if model["name"] == FUSION)
        thresholds = [float(one) for one in fusion["thresholds"]]
        if all(one == _USUAL for one in thresholds):
            return ""
        several = metrics["task"] == "multilabel"
        used = [name for name in metrics["table"][0] if name in _WITH_THRESHOLD]
        if several:
            found = f"the thresholds found on validation ({_span(thresholds)} for the fusion)"
        else:
            chance = "probability"
            if metrics["task"] != "match":
                chance = _of_class(metrics["names"])[1]
            found = (
                f"the threshold found on validation ({chance} at least {thresholds[0]:.2g} for "
                "the fusion)"
            )
        folds = metrics["part"] == "out-of-fold"
    except (LookupError, TypeError, ValueError):
        return ""
    clauses = [] if several else ["accuracy counts the more probable class"]
    used = ["accuracy", *used] if several else used
    if not folds:
        clauses.append(f"{_listing([*used, 'the labels of predict'])} use {found}")
        return "; ".join(clauses)
    if used:
        clauses.append(f"{_listing(used)} use {found}, the mean over the folds")
    clauses.append("the labels of predict use that of the models trained on all pairs")
    return "; ".join(clauses)


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _listing(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
