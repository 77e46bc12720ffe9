"""A finished run on given pairs: metrics, what the image adds, what of it is interaction."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import (
    FeatureFileError,
    OutputError,
    PairsError,
    ShapeError,
    UsageError,
    counted,
    shortened,
)
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.backend.device import check_device_name
from fusecli.fusion.options import check_choice
from fusecli.pairs.pair import PairOptions
from fusecli.training.calibration import Calibration
from fusecli.training.examples import Examples, Side
from fusecli.training.fitted import Fitted
from fusecli.training.groups import join_groups
from fusecli.training.interaction import Interaction, take_apart
from fusecli.training.learnt import Learnt, read_learnt
from fusecli.training.literals import ScoredPart
from fusecli.training.metrics import require_sklearn
from fusecli.training.options import LARGEST_NUMBER, LabelOptions
from fusecli.training.report import Facts, metrics_json, summary_lines
from fusecli.training.results import FUSION, Measured, compare
from fusecli.training.run_files import PREDICTIONS, SPLIT, write_bytes
from fusecli.training.run_folder import files_of_run, reading_run
from fusecli.training.score_part import (
    Part,
    network_headline,
    refuse_nonfinite,
    retrieval_of,
    seed_headlines,
)
from fusecli.training.side_by_side import choose_device
from fusecli.training.source import SourceOptions, open_data
from fusecli.training.stored import StoredModel
from fusecli.training.stored_run import load_run
from fusecli.training.tables import ModelLogits, PairInfo, answers_csv
from fusecli.training.targets import TASKS, Targets, Task
from fusecli.training.threshold_notes import accuracy_said, labels_said

Rows = NDArray[np.int64]
Tell = Callable[[str], None]

GIVEN: ScoredPart = "given"


class ReadingProgress(Protocol):
    """What is told while pairs are read."""

    def reading(self, done: int, total: int) -> None:
        """So many pairs of so many have been read."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """What `evaluate` and `predict` can be told; the meanings are those of the options.

    Attributes:
        run: the folder of a finished run.
        labels: for `evaluate`; its task is that of the run.
        output: for `predict`: the .csv file.
        seed: of samples, shuffles and draws.
    """

    run: str
    pairs: PairOptions
    labels: LabelOptions = field(default_factory=LabelOptions)
    reading: ReadOptions = field(default_factory=ReadOptions)
    output: str = PREDICTIONS
    seed: int = 0
    device: str = "auto"
    max_memory: int | None = None
    force: bool = False


@dataclass(frozen=True)
class LoadedRun:
    """A run's models, for pairs of any kind.

    Attributes:
        task: what was learnt.
        names: of its classes.
        models: as they lie in the folder.
    """

    task: Task
    names: tuple[str, ...]
    models: list[StoredModel]

    def bind(self, examples: Examples, device: str) -> list[Fitted]:
        """The models, giving logits for these pairs."""
        found: dict[str, Fitted] = {}
        for stored in self.models:
            found[stored.name] = Fitted.restored(stored, examples, choose_device(device), found)
        return list(found.values())


def open_run(path: str) -> LoadedRun:
    """Read a finished run's folder.

    Raises:
        UsageError: it is none.
        FeatureFileError: a file in it is damaged.
    """
    with reading_run(path):
        head, models = load_run(path)
    task = head.get("task")
    if task not in TASKS:
        raise UsageError(f"{path}: holds a run of the task {task!r}, which this version has not")
    return LoadedRun(cast(Task, task), tuple(head["names"]), models)


def calibration_of(model: StoredModel) -> Calibration:
    """What the run has fitted on its validation part."""
    found = model.calibration
    return Calibration(found.get("temperature", 1.0), tuple(found.get("thresholds", ())))


def evaluate_run(
    options: RunOptions, tell: Tell, progress: ReadingProgress
) -> tuple[dict[str, Any], list[str]]:
    """Measure a run's models on given pairs.

    Pairs that the run has learnt from are left out, and that is said.

    Args:
        options: the run, pairs and labels.
        tell: receives notes and warnings.
        progress: is told how many pairs have been read.

    Returns:
        The content of a `metrics.json`, and the lines that are printed.

    Raises:
        FuseError: the run, the pairs or the labels cannot be used.
    """
    _check(options)
    require_sklearn()
    with reading_run(options.run):  # models and pairs of one run: another may be trained after it
        run = open_run(options.run)
        learnt = read_learnt(os.path.join(options.run, SPLIT))
    labels = _labels_for(options, run.task)
    source = SourceOptions(options.pairs, labels, options.reading, options.max_memory, split=False)
    data = open_data(source, tell, progress.reading, run.names, said=False)
    assert data.targets is not None
    refuse_other_widths(options.run, run.models, data.examples)
    groups = join_groups(data.examples.image_key, data.targets.group)
    rows = _rows(learnt, data.examples, data.targets, tell)
    part = Part(data.examples, data.targets, groups, rows, options.seed, options.device)
    if len(np.unique(groups[rows])) < 2:
        raise PairsError(
            f"{counted(len(rows), 'pair')} in one group: evaluation needs pairs of at least two "
            "images"
        )
    fitted = run.bind(data.examples, options.device)
    result = compare(GIVEN, _measured(options.run, run, fitted, part), len(rows), options.seed)
    result.retrieval.update(retrieval_of(fitted, part))
    interaction: Interaction | None = None
    if run.task != "match":
        fusion = next(model for model in fitted if model.name == FUSION)
        interaction = take_apart(fusion, data.examples, data.targets, rows, groups, options.seed)
    facts = Facts("Evaluation", run.names, {GIVEN: len(rows)})
    metrics = metrics_json(result, facts, interaction)
    if said := accuracy_said(metrics):
        tell(f"note: {said}")
    return metrics, summary_lines(metrics)


def _check(options: RunOptions) -> None:
    """Raises:
    UsageError: an option is not possible.
    """
    check_device_name(options.device)
    if not 0 <= options.seed <= LARGEST_NUMBER:
        raise UsageError(
            f"--seed must be from 0 to {LARGEST_NUMBER:,}, found {shortened(str(options.seed))}"
        )


def _measured(path: str, run: LoadedRun, fitted: Sequence[Fitted], part: Part) -> list[Measured]:
    """What each model of a run says of a part.

    Raises:
        FuseError: logits that are not finite.
    """
    logits = [part.logits(model) for model in fitted]
    ids = [part.examples.ids[row] for row in part.rows.tolist()]
    for model, found in zip(fitted, logits, strict=True):
        refuse_nonfinite(path, model.name, ids, found)
    return [
        Measured(
            model.name,
            part.flat(found),
            calibration_of(stored),
            stored.variant,
            seeds=seed_headlines(model, part),
            shares=model.shares,
            network=network_headline(model, part),
        )
        for model, stored, found in zip(fitted, run.models, logits, strict=True)
    ]


def _labels_for(options: RunOptions, task: Task) -> LabelOptions:
    """Where the labels of a run of this task are.

    Raises:
        UsageError: they are of another task, or there are none.
    """
    if options.labels.task is not None:
        check_choice("--task", options.labels.task, TASKS)
        if options.labels.task != task:
            raise UsageError(f"--task {options.labels.task}: {options.run} has learnt {task}")
    labels = replace(options.labels, task=task)
    if task != "match" and labels.file is None and options.pairs.manifest is None:
        raise UsageError("evaluate compares with labels: expected --labels FILE or --manifest FILE")
    return labels


def refuse_other_widths(path: str, models: list[StoredModel], examples: Examples) -> None:
    """Raises:
    ShapeError: the features are not as wide as those that the run has learnt from.
    """
    spec = next(model for model in models if model.members).members[0].spec
    sides: tuple[tuple[Side, int], ...] = (("image", spec.image_dim), ("text", spec.text_dim))
    found = examples.width("image"), examples.width("text")
    if found == (spec.text_dim, spec.image_dim) != (spec.image_dim, spec.text_dim):
        raise ShapeError(
            f"the image features are {found[0]} wide and the text features {found[1]}, and {path} "
            f"has learnt from images of {spec.image_dim} and texts of {spec.text_dim}: the two "
            "widths are exchanged: give the two folders in the order IMAGES TEXTS, or exchange "
            "the columns image and text of the manifest"
        )
    for side, width in sides:
        if examples.width(side) != width:
            raise ShapeError(
                f"the {side} features are {examples.width(side)} wide, and {path} has learnt from "
                f"{width}: take features of the same encoder"
            )


def _rows(learnt: Learnt, examples: Examples, targets: Targets, tell: Tell) -> Rows:
    """The test part where the labels give one, without the pairs that were learnt from."""
    rows = np.arange(examples.n)
    if targets.split is not None and "test" in targets.split:
        rows = np.flatnonzero(np.asarray(targets.split) == "test")
        if len(rows) < examples.n:
            tell(f"note: only the test part of the column split: {counted(len(rows), 'pair')}")
    elif targets.split is not None:
        tell("note: the column split is not used: it has no test part")
    known = learnt.known(examples, rows)
    if known.all() and len(known):
        tell(
            f"warning: all {counted(len(rows), 'pair')} stood in training or validation of this "
            "run: these numbers are too good"
        )
        return rows
    if known.any():
        tell(
            f"note: {counted(int(known.sum()), 'pair')} stood in training or validation of this "
            f"run: left out, {len(rows) - int(known.sum()):,} remain"
        )
        rows = rows[~known]
    seen = sum(examples.image_key[row] in learnt.images for row in rows.tolist())
    if seen:
        tell(
            f"warning: {counted(seen, 'pair')} of {len(rows):,} with an image that the run has "
            "learnt from: these numbers may be too good"
        )
    return rows


def predict_run(options: RunOptions, tell: Tell, progress: ReadingProgress) -> str:
    """Write what the fusion of a run says of given pairs.

    Args:
        options: the run, the pairs and the output.
        tell: receives notes and warnings.
        progress: is told how many pairs have been read.

    Returns:
        The file that was written.

    Raises:
        FuseError: the run or the pairs cannot be used, or the file cannot be written.
    """
    check_device_name(options.device)
    if not options.output.lower().endswith(".csv"):
        raise UsageError(f"-o {options.output}: predictions are written as .csv")
    if os.path.lexists(options.output) and not options.force:
        raise UsageError(f"{options.output}: exists: say -f to replace it")
    folder = os.path.dirname(os.path.realpath(options.output))
    if not os.path.isdir(folder):  # before everything is read
        raise OutputError(f"{options.output}: its folder {folder} does not exist: make it first")
    with reading_run(options.run):
        run = open_run(options.run)
        learnt = _learnt_if_known(options.run, tell)
    source = SourceOptions(options.pairs, None, options.reading, options.max_memory)
    data = open_data(source, tell, progress.reading)
    data.inputs.check(options.output)
    files_of_run(options.run, (SPLIT, PREDICTIONS)).check(options.output)
    refuse_other_widths(options.run, run.models, data.examples)
    stored = next(model for model in run.models if model.name == FUSION)
    fusion = next(m for m in run.bind(data.examples, options.device) if m.name == FUSION)
    logits = fusion.logits(np.arange(data.examples.n))
    refuse_nonfinite(options.run, FUSION, data.examples.ids, logits)
    info = PairInfo(data.examples.ids, text_mask=data.examples.text_mask)
    said = ModelLogits(FUSION, logits, calibration_of(stored))
    for note in (
        labels_said(run.task, run.names, said.calibration.thresholds),
        learnt.of_predictions(data.examples) if learnt is not None else "",
    ):
        if note:
            tell(f"note: {note}")
    write_bytes(options.output, answers_csv(run.task, run.names, info, said), options.force)
    return options.output


def _learnt_if_known(path: str, tell: Tell) -> Learnt | None:
    """The pairs that a run has learnt from; None, and a warning, where its list is not whole: the
    predictions do not need it."""
    try:
        return read_learnt(os.path.join(path, SPLIT))
    except FeatureFileError as error:
        tell(f"warning: {error}: it is not known which of these pairs the run has learnt from")
        return None
