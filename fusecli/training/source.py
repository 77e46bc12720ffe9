"""From the options to labelled pairs and their features: what train, evaluate and predict share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusecli.errors import (
    PairsError,
    UsageError,
    counted,
)
from fusecli.features.pair_inputs import ReadOptions
from fusecli.features.protected import ProtectedFiles
from fusecli.fusion.literals import MethodName
from fusecli.pairs.open import Pair, PairOptions, open_pairs
from fusecli.report.feature_diagnoses import swapped_names
from fusecli.training.encode import (
    Tokens,
    make_targets,
    match_targets,
    may_be_tags,
    told_task,
)
from fusecli.training.examples import Examples, load_examples
from fusecli.training.label_checks import doubts, refuse_unreadable
from fusecli.training.label_notes import column_notes, spelling_notes
from fusecli.training.label_rows import columns_of
from fusecli.training.labels import (
    Labels,
    columns_wanted,
    labels_of_file,
    labels_of_pairs,
    task_said,
)
from fusecli.training.options import LabelOptions
from fusecli.training.pair_files import PairFiles
from fusecli.training.targets import Targets, Task

Tell = Callable[[str], None]
OnRead = Callable[[int, int], None]

MAX_MEMORY = 2 << 30  # of features in memory; above it they are read from the files again


@dataclass(frozen=True)
class Data:
    """Labelled pairs, read.

    Attributes:
        examples: their features.
        targets: their labels; None for `predict`.
        inputs: the files that they come from, which no command may change.
    """

    examples: Examples
    targets: Targets | None
    inputs: ProtectedFiles


@dataclass(frozen=True)
class SourceOptions:
    """Where pairs, labels and features come from.

    Attributes:
        labels: None: no labels are wanted (`predict`).
        max_memory: bytes of features in memory; None: `MAX_MEMORY`.
        split: the parts of the column split are used as they are given, and are said.
    """

    pairs: PairOptions
    labels: LabelOptions | None
    reading: ReadOptions
    max_memory: int | None = None
    split: bool = True


def open_data(
    options: SourceOptions,
    tell: Tell,
    on_read: OnRead,
    names: Sequence[str] | None = None,
    said: bool = True,
) -> Data:
    """Find the pairs, bring the labels to them, and read the features once.

    What is wrong with labels is said before features are read, where it can be.

    Args:
        options: where everything is.
        tell: receives notes and warnings.
        on_read: is told how many pairs of how many have been read.
        names: of the classes of a run; None: those that occur.
        said: the pairs are to be learnt from: say which task the labels tell, and what may be
            wrong with the classes.

    Raises:
        FuseError: pairs, labels or features cannot be used.
    """
    wanted = options.labels
    columns = _manifest_columns(options)
    pairs = _pairs(options, columns, tell)
    labels = None if wanted is None else _labels(options, wanted, pairs, columns, tell)
    task = None if wanted is None else wanted.task
    targets: Targets | None = None
    if labels is not None:
        refuse_unreadable(labels, task)
        pairs = [pairs[row] for row in labels.rows]
        if not may_be_tags(labels, task):
            targets = make_targets(labels, task, None, names)
            _say_labels(options, labels, targets, tell, said)
    elif wanted is not None:
        targets = _match(options, wanted, pairs, columns, tell)
    files = PairFiles(pairs, options.reading)
    examples = load_examples(files, options.max_memory or MAX_MEMORY, on_read, files.named())
    for note in examples.notes:
        tell(f"note: {note}")
    for line in files.said.lines():
        tell(line)
    if labels is not None and targets is None:
        tokens = Tokens(examples.text_mask, files.stored)
        targets = make_targets(labels, task or told_task(labels, tokens), tokens, names)
        _say_labels(options, labels, targets, tell, said, tokens)
    return Data(examples, targets, _inputs(options, pairs))


def _pairs(options: SourceOptions, columns: tuple[str, ...], tell: Tell) -> list[Pair]:
    """All pairs of the source, with these columns of the manifest.

    Raises:
        FuseError: they cannot be listed, or have attention masks.
    """
    pair_options = replace(options.pairs, extra_columns=columns, ending="")
    source = open_pairs(pair_options)
    for diagnosis in swapped_names(options.pairs.images or "", options.pairs.texts or ""):
        tell(f"warning: {diagnosis}")
    pairs = list(source)
    if any(pair.attention_mask is not None for pair in pairs):
        raise UsageError(
            f"{options.pairs.manifest}: has a column attention_mask, and training takes no "
            "attention masks: leave that column out"
        )
    for note in source.notes:
        tell(f"note: {note}")
    if source.unmatched.total:
        tell(f"warning: {source.unmatched}")
    return pairs


def _inputs(options: SourceOptions, pairs: Sequence[Pair]) -> ProtectedFiles:
    named = [options.pairs.manifest, options.pairs.images, options.pairs.texts]
    named.append(options.labels.file if options.labels is not None else None)

    def names() -> Iterator[str]:
        yield from (name for name in named if name is not None)
        for pair in pairs:
            yield from pair.files

    return ProtectedFiles(names)


def _say_labels(
    options: SourceOptions,
    labels: Labels,
    targets: Targets,
    tell: Tell,
    learnt: bool,
    tokens: Tokens | None = None,
) -> None:
    """Say what was assumed of the labels, and where they are to be learnt from, their task."""
    if learnt:
        asked = options.labels is not None and options.labels.task is not None
        tell(task_said(targets.task, asked, targets.names))
    for line in (
        *column_notes(labels, options.split),
        *spelling_notes(labels, targets, tokens),
        *(doubts(labels, targets.names) if learnt else ()),
    ):
        tell(line)


def _manifest_columns(options: SourceOptions) -> tuple[str, ...]:
    """The columns of labels that the manifest has and that are wanted from it."""
    manifest, wanted = options.pairs.manifest, options.labels
    if manifest is None or wanted is None or wanted.file is not None:
        return ()
    there = columns_of(manifest, "--manifest")
    label, *others = columns_wanted(wanted)
    if wanted.task == "match":
        return tuple(name for name in others if name in there)
    return tuple(name for name in (label, *others) if name in there)


def _labels(
    options: SourceOptions,
    wanted: LabelOptions,
    pairs: Sequence[Pair],
    columns: tuple[str, ...],
    tell: Tell,
) -> Labels | None:
    ids = [pair.id for pair in pairs]
    if wanted.file is not None:
        return labels_of_file(wanted, ids, tell)
    label, *_ = columns_wanted(wanted)
    manifest = options.pairs.manifest
    if manifest is None or wanted.task == "match" or label not in columns:
        if wanted.column is not None or wanted.task not in (None, "match"):
            where = manifest or "the command line"
            told = f"no column {label} in {where}" if manifest else "no --labels"
            raise UsageError(
                f"there are no labels ({told}): expected --labels FILE, or a column "
                f"{label} in --manifest"
            )
        return None
    places = [columns.index(name) if name in columns else None for name in columns_wanted(wanted)]
    extra = [["" if place is None else pair.extra[place] for place in places] for pair in pairs]
    return labels_of_pairs(wanted, manifest, ids, extra, tell)


def _match(
    options: SourceOptions,
    wanted: LabelOptions,
    pairs: Sequence[Pair],
    columns: tuple[str, ...],
    tell: Tell,
) -> Targets:
    """No labels: whether image and text belong together; groups and splits may be given."""
    if wanted.task is None:
        tell(
            "note: no labels are given: task match (does the image belong to the text); if you "
            "have labels, stop with Ctrl-C and give --labels FILE"
        )
    if not columns:
        if wanted.group is not None:
            raise PairsError(f"--group {wanted.group}: there is no such column in the manifest")
        return match_targets(len(pairs), None, None)
    # Read as labels are, with the pair's own id in place of one.
    places = [columns.index(name) if name in columns else None for name in columns_wanted(wanted)]
    extra = [
        ["own", *("" if place is None else pair.extra[place] for place in places[1:])]
        for pair in pairs
    ]
    labels = labels_of_pairs(wanted, "the manifest", [pair.id for pair in pairs], extra, tell)
    for line in column_notes(labels, options.split):
        tell(line)
    targets = match_targets(len(pairs), labels.group, labels.split)
    weight = None if labels.weight is None else np.asarray(labels.weight, np.float32)
    return replace(targets, weight=weight)


def refuse_unlearnable_tags(
    task: Task, examples: Examples, method: MethodName | None, residual: bool | None
) -> None:
    """Raises:
    UsageError: the fused rows of a pair are all equal, and tags differ by row.
    """
    single = int(examples.lengths("image").max()) == 1
    if task == "tag" and single and method == "attention" and residual is False:
        raise UsageError(
            "--task tag cannot be learnt by --method attention --no-residual from images of one "
            f"vector ({counted(examples.n, 'pair')}): attention to one image token gives the same "
            "row for every text token; leave --no-residual out"
        )
