"""`predictions.csv` and `split.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.training.calibration import Calibration
from fusecli.training.flat import probabilities
from fusecli.training.results import FUSION
from fusecli.training.split import Split
from fusecli.training.targets import IGNORED, Targets, Task

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ModelLogits:
    """What one model says of some pairs.

    Attributes:
        name: of the model.
        logits: [n, C], for `tag` [n, Tmax, C].
        calibration: how they become probabilities and answers.
    """

    name: str
    logits: NDArray[np.floating]
    calibration: Calibration

    def calibrated(self, task: Task) -> NDArray[np.float64]:
        """Probabilities, of the same shape; numbers for `regress`."""
        return probabilities(task, self.logits, self.calibration.temperature)


@dataclass(frozen=True)
class PairInfo:
    """Of the same pairs: columns that stand before the predictions; None: no such column."""

    ids: Sequence[str]
    group: Sequence[int] | None = None
    split: Sequence[str] | None = None
    targets: Targets | None = None
    text_mask: NDArray[np.bool_] | None = None


def split_csv(
    ids: Sequence[str], image_key: Sequence[str], split: Split, fold: Rows | None = None
) -> bytes:
    """`split.csv`: of every pair its group, its part (or fold), and the hash of its image."""
    groups = split.groups.tolist()
    part: Sequence[object] = split.parts() if fold is None else fold.tolist()
    name = "split" if fold is None else "fold"
    return _csv(["id", "group", name, "image"], zip(ids, groups, part, image_key, strict=True))


def predictions_csv(
    task: Task, names: Sequence[str], info: PairInfo, models: Sequence[ModelLogits]
) -> bytes:
    """`predictions.csv`: a row a pair, for `tag` a row a token.

    For each model: the probability of the second class (two classes, `match`), the value
    (`regress`), the probability of each label (`multilabel`), or the answer and its probability;
    then, for the fusion, the probability of each class.
    """
    if task == "tag":
        return _tag_csv(names, info, models)
    head, columns = _leading(info)
    if info.targets is not None and task != "match":
        head.append("label")
        columns.append(_labels(info.targets))
    for model in models:
        for name, values in _columns(task, names, model):
            head.append(name)
            columns.append(values)
    return _csv(head, zip(*columns, strict=True))


def _leading(info: PairInfo) -> tuple[list[str], list[Sequence[object]]]:
    found = [("id", info.ids), ("group", info.group), ("split", info.split)]
    kept = [(name, values) for name, values in found if values is not None]
    return [name for name, _ in kept], [list(values) for _, values in kept]


def _labels(targets: Targets) -> list[str]:
    if targets.task == "regress":
        return [f"{value:.8g}" for value in targets.values.tolist()]
    if targets.task == "multilabel":
        return [joined(targets.names, row) for row in targets.values > 0.5]
    return [targets.names[number] for number in targets.values.astype(np.int64).tolist()]


def joined(names: Sequence[str], held: NDArray[np.bool_]) -> str:
    """`a|b`: the labels that hold."""
    return "|".join(name for name, there in zip(names, held.tolist(), strict=True) if there)


def _columns(
    task: Task, names: Sequence[str], model: ModelLogits
) -> list[tuple[str, Sequence[object]]]:
    chances = model.calibrated(task)
    if task in ("regress", "match"):
        return [(model.name, _numbers(chances[:, 0]))]
    if task == "multilabel":
        return [(f"{model.name}: {name}", _numbers(chances[:, c])) for c, name in enumerate(names)]
    if len(names) == 2:
        return [(f"{model.name}: {names[1]}", _numbers(chances[:, 1]))]
    answer = chances.argmax(axis=1)
    found: list[tuple[str, Sequence[object]]] = [
        (f"{model.name} label", [names[c] for c in answer.tolist()]),
        (f"{model.name} probability", _numbers(chances[np.arange(len(chances)), answer])),
    ]
    if model.name == FUSION:
        found += [
            (f"{model.name}: {name}", _numbers(chances[:, c])) for c, name in enumerate(names)
        ]
    return found


def _tag_csv(names: Sequence[str], info: PairInfo, models: Sequence[ModelLogits]) -> bytes:
    longest = models[0].logits.shape[1]
    if info.targets is not None:
        shown = info.targets.values[:, :longest] != IGNORED
    else:
        assert info.text_mask is not None
        shown = info.text_mask[:, :longest]
    pair, token = np.nonzero(shown)
    head, columns = _leading(info)
    picked: list[Sequence[object]] = [[column[i] for i in pair.tolist()] for column in columns]
    head.insert(1, "token")
    picked.insert(1, token.tolist())
    if info.targets is not None:
        head.append("label")
        picked.append([names[c] for c in info.targets.values[:, :longest][shown].tolist()])
    for model in models:
        of_tokens = ModelLogits(model.name, model.logits[shown], model.calibration)
        for name, values in _columns("classify", names, of_tokens):
            head.append(name)
            picked.append(values)
    return _csv(head, zip(*picked, strict=True))


def answers_csv(task: Task, names: Sequence[str], info: PairInfo, model: ModelLogits) -> bytes:
    """What `predict` writes: the answer and the probability of each class, a row a pair."""
    chances = model.calibrated(task)
    thresholds = model.calibration.thresholds
    head, columns = ["id"], [list(info.ids)]  # type: list[str], list[Sequence[object]]
    if task == "tag":
        assert info.text_mask is not None
        shown = info.text_mask[:, : chances.shape[1]]
        pair, token = np.nonzero(shown)
        head, columns = ["id", "token"], [[info.ids[i] for i in pair.tolist()], token.tolist()]
        chances = chances[shown]
    if task == "regress":
        return _csv([*head, "value"], zip(*columns, _numbers(chances[:, 0]), strict=True))
    if task == "match":
        cut = thresholds[0] if thresholds else 0.5
        answer = ["true" if chance >= cut else "false" for chance in chances[:, 0].tolist()]
        head += ["label", "probability"]
        return _csv(head, zip(*columns, answer, _numbers(chances[:, 0]), strict=True))
    if task == "multilabel":
        cuts = np.array(thresholds or [0.5] * len(names))
        labels = [joined(names, row >= cuts) for row in chances]
    else:
        chosen = chances.argmax(axis=1)
        if len(names) == 2 and thresholds:
            chosen = (chances[:, 1] >= thresholds[0]).astype(np.int64)
        labels = [names[c] for c in chosen.tolist()]
    head += ["label", *(f"p({name})" for name in names)]
    each = [_numbers(chances[:, c]) for c in range(len(names))]
    return _csv(head, zip(*columns, labels, *each, strict=True))


def _numbers(values: NDArray[np.float64]) -> list[str]:
    """Nine digits tell all float32 logits apart, so that metrics can be computed again."""
    return [f"{value:.9g}" for value in values.tolist()]


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue().encode(errors="surrogateescape")
