"""Fit every line of the table: choose between candidates, then train what is kept.

Small data is chosen by folds: each candidate is trained K times, the best number of epochs and
the best candidate are read from the out-of-fold logits, and the chosen one is trained again on
all rows. Larger data has a validation part, which stops training and chooses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fusecli.errors import counted
from fusecli.training.blend import blend, parts_of, said_shares
from fusecli.training.candidates import Candidate, make_candidates
from fusecli.training.checkpoint import Checkpoints, EpochRecord
from fusecli.training.examples import ChannelStatistics, Examples, Pooled
from fusecli.training.fit_progress import FitProgress, Quiet
from fusecli.training.fitted import FitInfo, Fitted, majority
from fusecli.training.flat import flatten
from fusecli.training.inference import Setting
from fusecli.training.loop import Job, Trained, train_model, unpack_state
from fusecli.training.options import AUTO, TrainOptions
from fusecli.training.results import FUSION, ORDER
from fusecli.training.side_by_side import (
    choose_device,
    one_thread_a_model,
    run_side_by_side,
    worker_count,
)
from fusecli.training.side_index import Rows
from fusecli.training.split import Split, inner_folds
from fusecli.training.stored import Member
from fusecli.training.targets import Targets

Floats = NDArray[np.float32]

FOLDED_ROWS = 2000  # up to here candidates are chosen by folds
_FEW_ROWS = 1000  # up to here by four folds, above by three
_SMALL_SEEDS = 3  # models that are averaged on small data


@dataclass
class _Task:
    """A job and the statistics its model standardises with."""

    candidate: Candidate
    job: Job
    text: ChannelStatistics
    image: ChannelStatistics


@dataclass
class _Choice:
    """What was found for one candidate."""

    candidate: Candidate
    score: float
    score_name: str
    epochs: int
    logits: Floats
    rows: Rows
    trained: list[Trained] = field(default_factory=list)


def fit(
    examples: Examples,
    targets: Targets,
    split: Split,
    options: TrainOptions,
    progress: FitProgress | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[Fitted]:
    """Train everything for one split.

    Args:
        examples: the features of all pairs.
        targets: the labels of all pairs.
        split: `train` and `validation` are used; `test` is not looked at.
        options: of the run.
        progress: is told what happens.
        checkpoints: where the states of the jobs are kept; None: nowhere.

    Returns:
        One for each line of the table: "majority", "text only", "image only", "additive",
        "concat + MLP", "fusion" (for `match` without the first four, which are chance).

    Raises:
        KeyboardInterrupt: after the jobs under way have written their states.
    """
    fitter = _Fitter(
        examples, targets, split, options, progress or Quiet(), checkpoints or Checkpoints(None)
    )
    with one_thread_a_model():
        return fitter.run()


class _Fitter:
    def __init__(
        self,
        examples: Examples,
        targets: Targets,
        split: Split,
        options: TrainOptions,
        progress: FitProgress,
        checkpoints: Checkpoints,
    ) -> None:
        self.examples, self.split, self.options = examples, split, options
        self.progress, self.checkpoints = progress, checkpoints
        self.inner: Rows = np.sort(np.concatenate([split.train, split.validation]))
        # Of the whole run: each of `--folds` is trained as the weights are, which learn from all.
        self.n = targets.n if options.folds else len(self.inner)
        self.original = targets
        self.centre, self.spread = 0.0, 1.0
        if targets.task == "regress":
            values = targets.values[split.train].astype(np.float64)
            self.centre, self.spread = float(values.mean()), float(values.std()) or 1.0
            scaled = (targets.values - self.centre) / self.spread
            targets = replace(targets, values=scaled.astype(np.float32))
        self.targets = targets
        device = choose_device(options.device)
        autocast = device.type == "cuda" and options.dtype == "bfloat16"
        self.setting = Setting(examples, targets, device, autocast, split.groups)
        self.workers = worker_count(device)
        self._told = threading.Lock()
        self._known: dict[tuple[Pooled, bytes], tuple[ChannelStatistics, ChannelStatistics]] = {}
        self._histories: dict[tuple[str, str], dict[str, list[EpochRecord]]] = {}
        self._planned = 0

    def run(self) -> list[Fitted]:
        n = self.n
        candidates = make_candidates(self.examples, self.targets, self.options, n)
        given = self.targets.split is not None and "validation" in self.targets.split
        folded = n <= FOLDED_ROWS and not given
        choices = self._by_folds(candidates) if folded else self._by_validation(candidates)
        families: dict[str, list[_Choice]] = {}
        for choice in choices:
            families.setdefault(choice.candidate.family, []).append(choice)
        best = {family: max(found, key=lambda c: c.score) for family, found in families.items()}
        for family, choice in best.items():
            if len(families[family]) > 1:
                self.progress.note(_chosen(family, choice, families[family], folded))
        members = self._final(list(best.values()), self._seeds(n), folded)
        fitted: dict[str, Fitted] = {}
        if self.targets.task != "match":
            nothing = majority(self.examples, self.original, self.inner, self.setting.device)
            fitted[nothing.name] = nothing
        for family in ORDER:
            if family in best:
                own = self._fitted(best[family], members[family], families[family])
                fitted[family] = self._blended(own, fitted)
        return list(fitted.values())

    def _blended(self, own: Fitted, before: Mapping[str, Fitted]) -> Fitted:
        """A line of the table as a sum of its own networks and of the lines before it."""
        parts = parts_of(own.name, before)
        named = own.name == FUSION and self.options.method != AUTO  # asked for: nothing else
        if not parts or named:
            return own
        models = {own.name: own, **{name: before[name] for name in parts}}
        rows, unit = np.arange(len(own.tuning_rows)), self.targets.take(own.tuning_rows)
        flats = {
            name: flatten(unit, (model.tuning_logits - self.centre) / self.spread, rows)
            for name, model in models.items()
        }
        # The sum begins with the simplest of them.
        found = blend(flats, parts[0] if own.name == FUSION else None)
        if found.shares.keys() != {own.name}:
            self.progress.note(f"{own.name}: {said_shares(own.name, found.shares)}")
        return own.with_parts(found, [models[name] for name in parts if name in found.shares])

    def _seeds(self, n: int) -> int:
        if self.options.seeds is not None:
            return self.options.seeds
        return _SMALL_SEEDS if n <= FOLDED_ROWS else 1

    def _by_folds(self, candidates: Sequence[Candidate]) -> list[_Choice]:
        count = 4 if self.n <= _FEW_ROWS else 3
        folds = inner_folds(self.split, self.targets, count, self.options.seed)
        tasks = [
            self._task(c, train, held_out, f"fold {number}", self.options.seed, keep_all=True)
            for number, (train, held_out) in enumerate(folds)
            for c in candidates
        ]
        trained = self._train(tasks)
        choices = []
        for index, candidate in enumerate(candidates):
            runs = trained[index :: len(candidates)]
            choices.append(self._pool_folds(candidate, runs, [held for _, held in folds]))
        return choices

    def _pool_folds(
        self, candidate: Candidate, runs: Sequence[Trained], parts: Sequence[Rows]
    ) -> _Choice:
        """The number of epochs with the best mean score over the folds."""
        scores: dict[int, list[float]] = {}
        name = ""
        for run in runs:
            for record in run.history:
                if record.score is not None:
                    scores.setdefault(record.epoch, []).append(record.score)
                    name = record.score_name
        sizes = np.array([len(part) for part in parts], np.float64)
        means = {epoch: float(np.average(s, weights=sizes)) for epoch, s in scores.items()}
        # The last epochs of the schedule differ little; a later one is taken where equal.
        epoch = max(means, key=lambda e: (means[e], e))
        logits = [run.held_out[epoch] for run in runs]
        if self.targets.task == "match":  # own pairs of all folds first, then the wrong ones
            own = [found[: len(part)] for found, part in zip(logits, parts, strict=True)]
            wrong = [found[len(part) :] for found, part in zip(logits, parts, strict=True)]
            logits = own + wrong
        return _Choice(
            candidate, means[epoch], name, epoch, np.concatenate(logits), np.concatenate(parts)
        )

    def _by_validation(self, candidates: Sequence[Candidate]) -> list[_Choice]:
        train, held_out = self.split.train, self.split.validation
        tasks = [self._task(c, train, held_out, "choose", self.options.seed) for c in candidates]
        choices = []
        for candidate, trained in zip(candidates, self._train(tasks), strict=True):
            record = trained.history[trained.best_epoch - 1]
            assert record.score is not None
            logits = trained.held_out[trained.best_epoch]
            choice = _Choice(
                candidate, record.score, record.score_name, trained.best_epoch, logits, held_out
            )
            choice.trained.append(trained)
            choices.append(choice)
        return choices

    def _final(self, best: Sequence[_Choice], seeds: int, folded: bool) -> dict[str, list[Member]]:
        """The models that are kept: refits on all rows after folds, else those chosen."""
        tasks: list[_Task] = []
        for choice in best:
            for number in range(seeds):
                if not folded and number == 0:
                    continue  # trained already
                seed = self.options.seed + number
                if folded:
                    none = np.zeros(0, np.int64)
                    c, inner = choice.candidate, self.inner
                    tasks.append(self._task(c, inner, none, "all", seed, stop=choice.epochs))
                else:
                    train, held_out = self.split.train, self.split.validation
                    tasks.append(self._task(choice.candidate, train, held_out, "choose", seed))
        members: dict[str, list[Member]] = {}
        for choice in best:
            family = choice.candidate.family
            members[family] = []
            for trained in choice.trained:
                text, image = self._statistics(choice.candidate, self.split.train)
                members[family].append(self._member(choice.candidate, trained, text, image))
        for task, trained in zip(tasks, self._train(tasks), strict=True):
            member = self._member(task.candidate, trained, task.text, task.image)
            members[task.candidate.family].append(member)
        return members

    def _member(
        self,
        candidate: Candidate,
        trained: Trained,
        text: ChannelStatistics,
        image: ChannelStatistics,
    ) -> Member:
        """The trained model, with its output in the unit of the labels."""
        model = unpack_state(candidate.spec.build(text, image), trained.weights)
        return Member.of(candidate.spec, model, text, image, self.centre, self.spread)

    def _fitted(self, choice: _Choice, members: list[Member], found: Sequence[_Choice]) -> Fitted:
        candidate = choice.candidate
        info = FitInfo(
            variant=candidate.name,
            epochs=choice.epochs,
            score_name=choice.score_name,
            scores={c.candidate.name: c.score for c in found},
            history=self._histories[candidate.family, candidate.name],
            recipe=candidate.recipe,
        )
        return Fitted(
            candidate.family,
            members,
            self.examples,
            self.setting.device,
            info,
            choice.rows,
            choice.logits * self.spread + self.centre,
        )

    def _statistics(
        self, candidate: Candidate, rows: Rows
    ) -> tuple[ChannelStatistics, ChannelStatistics]:
        pooled = candidate.spec.pooled()
        key = (pooled, rows.tobytes())
        if key not in self._known:
            self._known[key] = candidate.spec.statistics(self.examples, rows)
        return self._known[key]

    def _task(
        self,
        candidate: Candidate,
        train: Rows,
        held_out: Rows,
        part: str,
        seed: int,
        *,
        stop: int | None = None,
        keep_all: bool = False,
    ) -> _Task:
        text, image = self._statistics(candidate, train)
        key = f"{candidate.family} / {candidate.name} / {part} / seed {seed}"
        build = partial(candidate.spec.build, text, image)
        model = json.dumps(candidate.spec.to_dict())
        job = Job(key, build, candidate.recipe, train, held_out, seed, stop, keep_all, model)
        return _Task(candidate, job, text, image)

    def _train(self, tasks: Sequence[_Task]) -> list[Trained]:
        """Train models side by side, the longest first."""
        self._planned += len(tasks)
        self.progress.plan(self._planned)
        order = sorted(range(len(tasks)), key=lambda i: -tasks[i].candidate.cost)
        results = run_side_by_side(
            [partial(self._train_one, tasks[i]) for i in order], self.workers, self.setting.stop
        )
        trained: dict[int, Trained] = dict(zip(order, results, strict=True))
        for index, task in enumerate(tasks):
            key = task.candidate.family, task.candidate.name
            self._histories.setdefault(key, {})[task.job.key] = trained[index].history
        return [trained[i] for i in range(len(tasks))]

    def _train_one(self, task: _Task) -> Trained:
        def on_epoch(key: str, epochs: int, record: EpochRecord) -> None:
            with self._told:
                self.progress.epoch(key, epochs, record)

        torch.set_num_threads(1)
        trained = train_model(task.job, self.setting, self.checkpoints, on_epoch)
        with self._told:
            self.progress.done(task.job.key)
        return trained


def _chosen(family: str, choice: _Choice, found: Sequence[_Choice], folded: bool) -> str:
    by = "folds" if folded else "the validation part"
    others = ", ".join(f"{c.candidate.name} {c.score:.3f}" for c in found if c is not choice)
    return (
        f"{family}: {choice.candidate.name} is the best by {by} ({choice.score_name} "
        f"{choice.score:.3f}; {others}), {counted(choice.epochs, 'epoch')}"
    )
