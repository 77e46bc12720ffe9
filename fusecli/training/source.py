"""From the options to labelled pairs and their features: what train, evaluate and predict share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import (
    FeatureFileError,
    FuseError,
    PairsError,
    UsageError,
    counted,
    shortened,
)
from fusecli.features.literals import Side
from fusecli.features.pair_inputs import ReadOptions
from fusecli.features.protected import ProtectedFiles
from fusecli.fusion.literals import SIDES, MethodName
from fusecli.pairs.fingerprints import content_of
from fusecli.pairs.open import Pair, PairOptions, open_pairs
from fusecli.pairs.pair import Place
from fusecli.pairs.reader import PairFeatures, PairReader
from fusecli.pairs.stamps import FileStamps
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
from fusecli.training.said import SaidOfPairs
from fusecli.training.targets import Targets, Task

Tell = Callable[[str], None]
OnRead = Callable[[int, int], None]

_READINGS = 3  # of a pair whose files are touched meanwhile
MAX_MEMORY = 2 << 30  # of features in memory; above it they are read from the files again


class PairFiles:
    """Pairs as `load_examples` reads them.

    Args:
        pairs: in their order.
        options: how files are read.

    Attributes:
        ids: of the pairs.
        stored: int64 `[N]`, text tokens in the file of each pair that was read, with padding.
        said: what is to be said of the pairs that were read.
    """

    def __init__(self, pairs: Sequence[Pair], options: ReadOptions) -> None:
        self._pairs, self._reader = pairs, PairReader(options)
        self.ids: Sequence[str] = tuple(pair.id for pair in pairs)
        self.stored = np.zeros(len(pairs), np.int64)
        self.said = SaidOfPairs(len(pairs))
        # Of each pair that was read: its files' sizes and times, their versions, and the content
        # that was read, as hashes; 0 for one that was not.
        self._stamps, self._versions = np.zeros((2, len(pairs)), np.int64)
        self._contents = np.zeros(len(pairs), np.uint64)

    def named(self) -> dict[Side, NDArray[np.int64]]:
        """int64 `[N]` a side: equal numbers where two pairs name the same features."""
        numbers: dict[Side, NDArray[np.int64]] = {}
        for side in SIDES:
            known: dict[Place, int] = {}
            places = (pair.image if side == "image" else pair.text for pair in self._pairs)
            numbers[side] = np.array([known.setdefault(p, len(known)) for p in places], np.int64)
        return numbers

    def read(self, row: int) -> PairFeatures:
        """Both sides of a pair.

        Raises:
            FuseError: it cannot be read, or a file was changed since it was read first; names
                the pair.
        """
        pair = self._pairs[row]
        try:
            features = self._read_unchanged(row, pair)
        except FuseError as error:
            raise type(error)(f"pair {shortened(pair.id)!r}: {error}") from None
        self.stored[row] = len(features.text)
        self.said.add(row, features)
        return features

    def _read_unchanged(self, row: int, pair: Pair) -> PairFeatures:
        """Raises:
        FeatureFileError: the files are others than those that were read first.
        """
        for _ in range(_READINGS):
            stamps, version = _hashes_of(pair)
            features = self._reader.read(pair)
            after = _hashes_of(pair)
            first = self._stamps[row] or stamps
            if stamps != first or after[0] != first:
                break
            if after[1] != version:
                continue  # a further link or other rights, or a rewrite: it is read again
            if version != self._versions[row]:  # the first time, or the same
                content = content_of(features)
                if content != (self._contents[row] or content):
                    break
                self._stamps[row], self._versions[row] = stamps, version
                self._contents[row] = content
            return features
        raise FeatureFileError(
            f"{pair.image.file} or {pair.text.file}: changed while the run reads it: run "
            "the command again once nobody writes to it"
        )


def _hashes_of(pair: Pair) -> tuple[int, int]:
    """64 bits each, not 0, that tell sizes and times, and the versions, of a pair's files."""
    files = FileStamps()
    return hash(tuple(files.of(pair))) or 1, hash(tuple(files.versions(pair))) or 1


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
    """

    pairs: PairOptions
    labels: LabelOptions | None
    reading: ReadOptions
    max_memory: int | None = None


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
        said: the pairs are to be learnt from: say which task the labels tell, and what was
            assumed.

    Raises:
        FuseError: pairs, labels or features cannot be used.
    """
    wanted = options.labels
    columns = _manifest_columns(options)
    pairs = _pairs(options, columns, tell)
    labels = None if wanted is None else _labels(options, wanted, pairs, columns, tell)
    task = None if wanted is None else wanted.task
    targets: Targets | None = None
    tags = False
    if labels is not None:
        refuse_unreadable(labels)
        pairs = [pairs[row] for row in labels.rows]
        tags = may_be_tags(labels, task)
        if not tags:
            targets = make_targets(labels, task, None, names)
    elif wanted is not None:
        targets = _match(wanted, pairs, columns, tell)
    if labels is not None and targets is not None and said:
        _say_labels(labels, targets, task, tell)
    if labels is not None and not said:
        for line in column_notes(labels, split=False):
            tell(line)
    files = PairFiles(pairs, options.reading)
    examples = load_examples(files, options.max_memory or MAX_MEMORY, on_read, files.named())
    for note in examples.notes:
        tell(f"note: {note}")
    for line in files.said.lines():
        tell(line)
    if labels is not None and tags:
        tokens = Tokens(examples.text_mask, files.stored)
        targets = make_targets(labels, task or told_task(labels, tokens), tokens, names)
        if said:
            _say_labels(labels, targets, task, tell, tokens)
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
    labels: Labels, targets: Targets, task: Task | None, tell: Tell, tokens: Tokens | None = None
) -> None:
    tell(task_said(targets.task, task is not None, targets.names))
    for line in (
        *column_notes(labels),
        *spelling_notes(labels, targets, tokens),
        *doubts(labels, targets.names),
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
    wanted: LabelOptions, pairs: Sequence[Pair], columns: tuple[str, ...], tell: Tell
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
    for line in column_notes(labels):
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
