"""The metrics of a part, by scikit-learn (extra `train`), which is imported late.

The keys are part of `metrics.json`; docs/training.md explains each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import MissingExtraError
from fusecli.training.calibration import Calibration, log_loss
from fusecli.training.flat import Flat, positive_scores, probabilities

Floats = NDArray[np.float64]
Value = float | None  # None: cannot be computed, such as an AUC where all rows are of one class
Metrics = dict[str, Any]

MOST_CONFUSED = 60  # classes that a confusion matrix is written for
_BINS = 15  # of the calibration error


def require_sklearn() -> None:
    """Raises:
    MissingExtraError: scikit-learn is not installed.
    """
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"training and evaluation need scikit-learn ({error}): run pip install '.[train]' in "
            "the clone of fusecli"
        ) from None


def measure(flat: Flat, calibration: Calibration) -> Metrics:
    """All metrics of the rows.

    Args:
        flat: what the model says, and what is true.
        calibration: its temperature and thresholds, from the validation part.

    Returns:
        Numbers, or None where one cannot be computed; `confusion` and `per_class` are nested.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without rows: those metrics are None or 0
        if flat.task == "regress":
            return _regression(flat)
        if flat.task == "multilabel":
            return _multilabel(flat, calibration)
        return _classification(flat, calibration)


def _number(compute: Callable[[], Any]) -> Value:
    try:
        value = float(compute())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mean(values: list[Value]) -> Value:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _regression(flat: Flat) -> Metrics:
    from scipy.stats import spearmanr
    from sklearn import metrics as sk

    truth, said, weight = flat.truth, flat.logits[:, 0], flat.weight
    spread = len(truth) > 1 and np.ptp(said) > 0 and np.ptp(truth) > 0
    return {
        "r2": _number(lambda: sk.r2_score(truth, said, sample_weight=weight)),
        "mae": _number(lambda: sk.mean_absolute_error(truth, said, sample_weight=weight)),
        "rmse": _number(lambda: sk.mean_squared_error(truth, said, sample_weight=weight) ** 0.5),
        "spearman": _number(lambda: spearmanr(truth, said).statistic) if spread else None,
    }


def _ranking(flat: Flat, temperature: float) -> list[tuple[str, Value, Value]]:
    """Name, AUC and average precision of each yes-or-no question, by calibrated probabilities."""
    from sklearn import metrics as sk

    found: list[tuple[str, Value, Value]] = []
    for score, positive, name in positive_scores(flat.with_logits(flat.logits / temperature)):
        if positive.all() or not positive.any():
            found.append((name, None, None))
            continue
        auc = _number(lambda p=positive, s=score: sk.roc_auc_score(p, s, sample_weight=flat.weight))  # type: ignore[misc]
        precision = _number(
            lambda p=positive, s=score: sk.average_precision_score(p, s, sample_weight=flat.weight)  # type: ignore[misc]
        )
        found.append((name, auc, precision))
    return found


def predicted(flat: Flat, calibration: Calibration) -> NDArray[np.int64]:
    """The class of each row: by the threshold where there are two, else the most probable. [m]"""
    chances = probabilities(flat.task, flat.logits, calibration.temperature)
    if flat.task == "match":
        return (chances[:, 0] >= _threshold(calibration)).astype(np.int64)
    if chances.shape[1] == 2:
        return (chances[:, 1] >= _threshold(calibration)).astype(np.int64)
    likeliest: NDArray[np.int64] = chances.argmax(axis=1)
    return likeliest


def _threshold(calibration: Calibration) -> float:
    return calibration.thresholds[0] if calibration.thresholds else 0.5


def _classification(flat: Flat, calibration: Calibration) -> Metrics:
    from sklearn import metrics as sk

    names = flat.names or ("other image", "own image")
    truth, weight = flat.truth.astype(np.int64), flat.weight
    answer, labels = predicted(flat, calibration), np.arange(len(names))
    chances = probabilities(flat.task, flat.logits, calibration.temperature)
    if flat.task == "match":
        chances = np.concatenate([1 - chances, chances], axis=1)
    ranking = _ranking(flat, calibration.temperature)
    here = np.unique(truth)
    binary = len(names) == 2
    average: dict[str, Any] = {"average": "macro", "labels": here}
    if binary:
        average = {"average": "binary", "pos_label": 1}
    found: Metrics = {
        "auc": _mean([auc for _, auc, _ in ranking]),
        "average_precision": _mean([precision for _, _, precision in ranking]),
        "accuracy": float(np.average(chances.argmax(axis=1) == truth, weights=weight)),
        "balanced_accuracy": _number(
            lambda: sk.balanced_accuracy_score(truth, answer, sample_weight=weight)
        ),
        "f1": _number(
            lambda: sk.f1_score(truth, answer, sample_weight=weight, zero_division=0, **average)
        ),
        "mcc": _number(lambda: sk.matthews_corrcoef(truth, answer, sample_weight=weight)),
        "log_loss": log_loss(flat, calibration.temperature),
        "calibration_error": calibration_error(chances, truth, weight),
        "temperature": calibration.temperature,
    }
    if binary:
        found["threshold"] = _threshold(calibration)
        found["accuracy_at_threshold"] = float(np.average(answer == truth, weights=weight))
    found["per_class"] = _per_class(truth, answer, weight, names, ranking)
    if len(names) <= MOST_CONFUSED:
        counts = sk.confusion_matrix(truth, answer, labels=labels, sample_weight=weight)
        found["confusion"] = {
            "rows": "true class",
            "columns": "predicted class",
            "names": list(names),
            "counts": counts.tolist(),
        }
    return found


def _per_class(
    truth: NDArray[np.int64],
    answer: NDArray[np.int64],
    weight: NDArray[np.float64],
    names: Sequence[str],
    ranking: list[tuple[str, Value, Value]],
) -> list[Metrics]:
    """Precision, recall, F1 and ranking of each class by itself."""
    from sklearn import metrics as sk

    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        truth, answer, labels=np.arange(len(names)), sample_weight=weight, zero_division=0
    )
    rows = np.bincount(truth, minlength=len(names))
    return [
        {
            "name": name,
            "rows": int(rows[c]),
            "precision": float(precision[c]),
            "recall": float(recall[c]) if rows[c] else None,
            "f1": float(f1[c]),
            **_of_class(ranking, c, len(names) == 2),
        }
        for c, name in enumerate(names)
    ]


def _of_class(ranking: list[tuple[str, Value, Value]], c: int, binary: bool) -> Metrics:
    if binary:  # one question for both classes, and average precision is that of the second
        auc, precision = ranking[0][1], ranking[0][2] if c else None
    else:
        auc, precision = ranking[c][1], ranking[c][2]
    return {"auc": auc, "average_precision": precision}


def _multilabel(flat: Flat, calibration: Calibration) -> Metrics:
    weight, truth = flat.weight, flat.truth > 0.5
    chances = probabilities(flat.task, flat.logits, calibration.temperature)
    thresholds = np.array(calibration.thresholds or [0.5] * len(flat.names))
    answer = chances >= thresholds
    per_label = _per_label(flat, truth, answer, calibration.temperature)
    known = [one for one in per_label if 0 < one["rows"] < len(truth)]
    return {
        "auc": _mean([one["auc"] for one in per_label]),
        "average_precision": _mean([one["average_precision"] for one in per_label]),
        "accuracy": float(np.average((answer == truth).mean(axis=1), weights=weight)),
        "all_labels_right": float(np.average((answer == truth).all(axis=1), weights=weight)),
        "balanced_accuracy": _mean([one["balanced_accuracy"] for one in known]),
        "f1": _mean([one["f1"] for one in per_label if one["rows"]]),
        "mcc": _mean([one["mcc"] for one in known]),
        "log_loss": log_loss(flat, calibration.temperature),
        "calibration_error": _binned_error(
            chances.reshape(-1), truth.reshape(-1), np.repeat(weight, truth.shape[1])
        ),
        "temperature": calibration.temperature,
        "per_class": [
            {name: value for name, value in one.items() if name not in _MEANS_ONLY}
            | {"threshold": float(threshold)}
            for one, threshold in zip(per_label, thresholds, strict=True)
        ],
    }


_MEANS_ONLY = ("balanced_accuracy", "mcc")  # of several labels, only their means are reported


def _per_label(
    flat: Flat, truth: NDArray[np.bool_], answer: NDArray[np.bool_], temperature: float
) -> list[Metrics]:
    """The metrics of each of several labels by itself. truth, answer: [m, C]"""
    from sklearn import metrics as sk

    weight = flat.weight
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        truth, answer, average=None, sample_weight=weight, zero_division=0
    )
    ranking = _ranking(flat, temperature)
    rows = truth.sum(axis=0)
    found = []
    for c, name in enumerate(flat.names):
        own, said = truth[:, c], answer[:, c]
        one: Metrics = {
            "name": name,
            "rows": int(rows[c]),
            "precision": float(precision[c]),
            "recall": float(recall[c]) if rows[c] else None,
            "f1": float(f1[c]),
            "auc": ranking[c][1],
            "average_precision": ranking[c][2],
        }
        if 0 < rows[c] < len(own):
            one["balanced_accuracy"] = _number(
                partial(sk.balanced_accuracy_score, own, said, sample_weight=weight)
            )
            one["mcc"] = _number(partial(sk.matthews_corrcoef, own, said, sample_weight=weight))
        found.append(one)
    return found


def calibration_error(chances: Floats, truth: NDArray[np.int64], weight: Floats) -> float:
    """Expected calibration error: by how much confidence and accuracy differ on average.

    Rows are put into 15 bins by the probability of the most probable class; Guo et al. 2017
    (arXiv:1706.04599), eq. 3.

    Args:
        chances: float64 [m, C].
        truth: int64 [m].
        weight: float64 [m].
    """
    answer = chances.argmax(axis=1)
    confidence = chances[np.arange(len(chances)), answer]
    return _binned_error(confidence, answer == truth, weight)


def _binned_error(confidence: Floats, right: NDArray[np.bool_], weight: Floats) -> float:
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gap = np.bincount(bins, weight * (confidence - right), _BINS)
    return float(np.abs(gap).sum() / weight.sum())
