"""One training run: from labelled pairs to a folder with weights, metrics and predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError, shortened
from fusecli.fusion.run_sums import METRICS, SUMS_KEY, are_whole
from fusecli.fusion.weights_file import RUN_WEIGHTS
from fusecli.training.calibration import Calibration
from fusecli.training.examples import Examples
from fusecli.training.fit import fit
from fusecli.training.fitted import Fitted
from fusecli.training.groups import join_groups
from fusecli.training.metrics import require_sklearn
from fusecli.training.options import TrainOptions
from fusecli.training.out_of_fold import OutOfFold
from fusecli.training.pictures import draw_comparison, draw_curves
from fusecli.training.report import Facts, as_json, metrics_json, report_md, summary_lines
from fusecli.training.results import PartResult, compare
from fusecli.training.run_files import (
    COMPARISON,
    CURVES,
    LOG,
    OUTPUTS,
    PREDICTIONS,
    REPORT,
    SPLIT,
    identity,
    log_jsonl,
    read_metrics,
    recipes_of,
)
from fusecli.training.run_folder import RunFolder
from fusecli.training.score_part import Part, calibration_of, measured, retrieval_of
from fusecli.training.side_by_side import choose_device, one_thread_a_model
from fusecli.training.source import Data, SourceOptions, open_data, refuse_unlearnable_tags
from fusecli.training.split import (
    Split,
    all_for_training,
    classes_not_learnt,
    make_folds,
    make_split,
    seen_share,
)
from fusecli.training.tables import ModelLogits, PairInfo, predictions_csv, split_csv
from fusecli.training.targets import Targets
from fusecli.training.threshold_notes import accuracy_said
from fusecli.training.train_notes import NotedProgress, Notes, TrainProgress

Rows = NDArray[np.int64]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        output: the folder.
        metrics: the content of `metrics.json`.
        lines: the table and the verdict.
        complete_before: the folder held this very run, complete; nothing was computed.
    """

    output: str
    metrics: dict[str, Any]
    lines: list[str]
    complete_before: bool


def run_training(options: TrainOptions, tell: Tell, progress: TrainProgress) -> Outcome:
    """Train a fusion and its baselines, measure them, and write the run's folder.

    Can be stopped at any moment and run again: it goes on where it was.

    Args:
        options: what to do.
        tell: receives notes and warnings, one line each.
        progress: is told what happens.

    Raises:
        FuseError: the data cannot be learnt from, or the folder holds something else.
    """
    options.check()
    _refuse_output_inside(options)
    choose_device(options.device)  # a device that is not there is said before anything is read
    require_sklearn()
    notes = Notes(tell)
    source = SourceOptions(
        options.pairs,
        options.labels,
        options.reading,
        options.max_memory,
        split=not options.folds,
    )
    data = open_data(source, notes, progress.reading)
    run = _Run(options, data, notes, progress)
    with run.folder.alone(options.resume) as locked:
        if not locked:
            # Only told: kept in the report it would make other bytes of the same run.
            tell(
                f"note: {options.output}: no locks here: run no other training in this folder "
                "before this one has ended"
            )
        run.folder.check(data.inputs)
        if run.folder.begin(options.resume, options.force):
            stored = read_metrics(os.path.join(options.output, METRICS))
            there = (run.folder.path / RUN_WEIGHTS).exists()
            if stored is not None and there and are_whole(options.output):
                run.folder.finish()
                return Outcome(options.output, stored, _lines(stored), True)
        # Not only while models are trained: with more threads the last digits are others, and a
        # run that goes on in a process of fewer would end with other bytes.
        with one_thread_a_model():
            return run.folds() if options.folds else run.held_out()


def _refuse_output_inside(options: TrainOptions) -> None:
    """Raises:
    UsageError: the run's files would be read as features by the next run.
    """
    output = os.path.realpath(options.output)
    for folder in (options.pairs.images, options.pairs.texts):
        if folder is None or not os.path.isdir(folder):
            continue
        inside = os.path.join(os.path.realpath(folder), "")
        if output.startswith(inside):
            raise UsageError(
                f"-o {options.output}: is inside the input folder {folder}, where its files would "
                "be read as features: name a folder elsewhere"
            )


class _Run:
    """What is known before the first model is trained."""

    def __init__(
        self, options: TrainOptions, data: Data, notes: Notes, progress: TrainProgress
    ) -> None:
        assert data.targets is not None
        self.options, self.notes = options, notes
        self.progress = NotedProgress(progress, notes)
        self.examples: Examples = data.examples
        self.targets: Targets = data.targets
        self.groups = join_groups(self.examples.image_key, self.targets.group)
        method = options.module.method or ("attention" if options.method == "auto" else None)
        refuse_unlearnable_tags(self.targets.task, self.examples, method, options.module.residual)
        if options.folds:
            if self.targets.split is not None:
                notes("note: the column split is not used: --folds holds out every pair once")
            self.targets = replace(self.targets, split=None)
            self.splits = make_folds(
                self.targets, self.groups, options.folds, options.seed, options.val_fraction
            )
        else:
            self.splits = [
                make_split(
                    self.targets,
                    self.groups,
                    self.examples.ids,
                    options.seed,
                    options.val_fraction,
                    options.test_fraction,
                )
            ]
        self._say_not_learnt()
        self.folder = RunFolder(
            options.output, identity(options, self.examples, data.targets), OUTPUTS
        )

    def _say_not_learnt(self) -> None:
        found = [classes_not_learnt(split, self.targets) for split in self.splits]
        missing = list(dict.fromkeys(name for names in found for name in names))
        if not missing:
            return
        verb = "class is" if len(missing) == 1 else "classes are"
        where = "that a fold learns from" if self.options.folds else "of the training part"
        weight = "" if self.targets.weight is None else " with a weight above 0"
        self.notes(
            f"warning: {len(missing):,} {verb} in no pair{weight} {where} (first "
            f"{shortened(missing[0])!r}): no model can learn to give such an answer"
        )

    def held_out(self) -> Outcome:
        """Train on one split and look at its held-out part once."""
        split = self.splits[0]
        seen = seen_share(self.examples.text_key, split)
        fitted = self._fit(split, "")
        calibrations = {model.name: calibration_of(model, self.targets) for model in fitted}
        part = self._part(split.test)
        logits = {model.name: part.logits(model) for model in fitted}
        models = [
            measured(model, part, logits[model.name], calibrations[model.name]) for model in fitted
        ]
        result = compare("test", models, len(split.test), self.options.seed, seen)
        result.retrieval.update(retrieval_of(fitted, part))
        predictions = self._predictions(split, fitted, logits, calibrations)
        table = split_csv(self.examples.ids, self.examples.image_key, split)
        sizes = {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        }
        return self._write(result, fitted, calibrations, sizes, predictions, table)

    def folds(self) -> Outcome:
        """Out-of-fold logits of everybody, then one fit on all for the weights."""
        pool = OutOfFold(self.targets, self.groups)
        fold_of = np.zeros(self.targets.n, np.int64)
        for number, split in enumerate(self.splits, 1):
            fold_of[split.test] = number
            self.progress.silent = True
            fitted = self._fit(split, f"fold {number}")
            self.progress.silent = False
            part = self._part(split.test)
            for model in fitted:
                pool.add(model, part, calibration_of(model, self.targets))
        split = all_for_training(
            self.targets, self.groups, self.options.seed, self.options.val_fraction
        )
        fitted = self._fit(split, "all")
        calibrations = {model.name: calibration_of(model, self.targets) for model in fitted}
        result = compare("out-of-fold", pool.models(), self.targets.n, self.options.seed)
        info = self._info(np.arange(self.targets.n), None)
        predictions = predictions_csv(
            self.targets.task, self.targets.names, info, pool.predictions()
        )
        table = split_csv(self.examples.ids, self.examples.image_key, split, fold_of)
        sizes = {"out-of-fold": self.targets.n}
        return self._write(result, fitted, calibrations, sizes, predictions, table)

    def _fit(self, split: Split, part: str) -> list[Fitted]:
        checkpoints = self.folder.checkpoints(part)
        return fit(self.examples, self.targets, split, self.options, self.progress, checkpoints)

    def _part(self, rows: Rows) -> Part:
        return Part(
            self.examples, self.targets, self.groups, rows, self.options.seed, self.options.device
        )

    def _predictions(
        self,
        split: Split,
        fitted: Sequence[Fitted],
        logits: dict[str, NDArray[np.float32]],
        calibrations: dict[str, Calibration],
    ) -> bytes:
        """Of the validation and the test part: no row is by a model that has learnt from it."""
        inner = fitted[-1].tuning_rows
        rows = np.concatenate([inner, split.test])
        order = np.argsort(rows)
        models = []
        for model in fitted:
            tuning = _widened(model.tuning_logits, logits[model.name])
            own = logits[model.name][: len(split.test)]
            place = np.searchsorted(model.tuning_rows, inner, sorter=np.argsort(model.tuning_rows))
            sorted_rows = np.argsort(model.tuning_rows)[place]
            both = np.concatenate([tuning[sorted_rows], own])
            models.append(ModelLogits(model.name, both[order], calibrations[model.name]))
        rows = rows[order]
        parts = split.parts()
        info = self._info(rows, [parts[row] for row in rows.tolist()])
        return predictions_csv(self.targets.task, self.targets.names, info, models)

    def _info(self, rows: Rows, parts: Sequence[str] | None) -> PairInfo:
        ids = [self.examples.ids[row] for row in rows.tolist()]
        return PairInfo(ids, self.groups[rows].tolist(), parts, self.targets.take(rows))

    def _write(
        self,
        result: PartResult,
        fitted: Sequence[Fitted],
        calibrations: dict[str, Calibration],
        sizes: dict[str, int],
        predictions: bytes,
        split: bytes,
    ) -> Outcome:
        output, targets = self.options.output, self.targets
        title = f"Training run: {targets.task}"
        facts = Facts(title, targets.names, sizes, tuple(self.notes.kept))
        head = {"task": targets.task, "names": list(targets.names)}
        self.folder.save_models(
            fitted, head, {name: asdict(found) for name, found in calibrations.items()}
        )
        metrics = metrics_json(result, facts)
        written = {
            SPLIT: split,
            PREDICTIONS: predictions,
            LOG: log_jsonl(fitted),
            CURVES: draw_curves(fitted),
            COMPARISON: draw_comparison(result),
        }
        if written[CURVES] is None:
            self.notes(
                "note: no pictures were drawn: they need matplotlib, pip install '.[plot]' in the "
                "clone of fusecli"
            )
        for name, content in written.items():
            if content is not None:
                self.folder.write(name, [content])
        self.folder.write(REPORT, [report_md(result, facts).encode()])
        metrics["recipes"] = recipes_of(fitted)
        metrics[SUMS_KEY] = self.folder.sums((SPLIT,))
        self.folder.write(METRICS, [as_json(metrics)])
        self.folder.finish()
        return Outcome(output, metrics, _lines(metrics), False)


def _lines(metrics: dict[str, Any]) -> list[str]:
    """What is printed at the end."""
    said = accuracy_said(metrics)
    return [*summary_lines(metrics), *([f"note: {said}"] if said else [])]


def _widened(logits: NDArray[np.floating], like: NDArray[np.floating]) -> NDArray[np.floating]:
    """Tags of shorter texts, padded to the token count of other logits."""
    if logits.ndim < 3 or logits.shape[1] == like.shape[1]:
        return logits
    wide = np.zeros((len(logits), like.shape[1], logits.shape[2]), logits.dtype)
    wide[:, : logits.shape[1]] = logits[:, : like.shape[1]]
    return wide
