"""From labels as written to targets: which task they tell, and the numbers of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import PairsError, counted, shortened
from fusecli.training.label_checks import (
    listed,
    refuse_unreadable,
    refuse_unusable_numbers,
    without_label,
)
from fusecli.training.label_columns import Raw, is_missing, number_of
from fusecli.training.labels import Labels
from fusecli.training.targets import IGNORED, Targets, Task

_FEW = 20  # different whole numbers that are classes
_MANY = 100  # that are classes if none is left out and each has _EACH pairs
_EACH = 5
_MOSTLY = 0.9  # of texts that have one word a text token, to be tags
_WHOLE = re.compile(r"([-+]?\d+)\.0+", re.ASCII)
_NO_TAG = "-100"  # torch's ignore_index, as a class is written


@dataclass(frozen=True)
class Tokens:
    """Text tokens of the pairs, for tags.

    Attributes:
        real: bool [n, Tmax], true where a token is no padding.
        stored: int64 [n], tokens as they lie in the files, padding included.
    """

    real: NDArray[np.bool_]
    stored: NDArray[np.int64]


def may_be_tags(labels: Labels, task: Task | None) -> bool:
    """Whether the texts' tokens have to be counted before the targets can be made."""
    if task is not None:
        return task == "tag"
    values = labels.values
    if any(listed(value) is not None for value in values):
        return True
    return all(isinstance(value, str) and " " in value.strip() for value in values)


def told_task(labels: Labels, tokens: Tokens | None) -> Task:
    """The task that the labels tell.

    Lists are tags, and so are texts of as many words as the pair has text tokens; `a|b` are
    several labels; numbers are to be predicted unless they are few and whole; words are classes.

    Texts of as many words as tokens in nearly all pairs are tags as well: `make_targets` then
    refuses the few that are not.
    """
    values = labels.values
    if any(listed(value) is not None for value in values):
        return "tag"
    if tokens is not None and _are_words_of_tags(values, tokens):
        return "tag"
    numbers = [number_of(value) for value in values]
    if all(number is not None for number in numbers):
        return "classify" if _are_classes([n for n in numbers if n is not None]) else "regress"
    if any(isinstance(value, str) and "|" in value for value in values):
        return "multilabel"
    return "classify"


def _are_words_of_tags(values: Sequence[Raw], tokens: Tokens) -> bool:
    counts = [len(str(value).split()) for value in values]
    fitting = sum(count in _lengths(tokens, row) for row, count in enumerate(counts))
    # Counts that are all the same may fit by chance.
    least = _MOSTLY * len(counts) if len(set(counts)) > 2 else len(counts)
    return fitting >= least


def _are_classes(numbers: list[float]) -> bool:
    finite = [number for number in numbers if math.isfinite(number)]
    if any(number != int(number) for number in finite):
        return False
    kinds = sorted(set(finite))
    if len(kinds) <= _FEW:
        return 2 * len(kinds) <= len(finite)
    gapless = kinds[0] in (0, 1) and kinds[-1] - kinds[0] == len(kinds) - 1
    return gapless and len(kinds) <= _MANY and _EACH * len(kinds) <= len(finite)


def make_targets(
    labels: Labels,
    task: Task | None,
    tokens: Tokens | None = None,
    names: Sequence[str] | None = None,
) -> Targets:
    """Targets in the order of the labels.

    Args:
        labels: of the pairs that have one.
        task: None: told by the labels.
        tokens: of the texts, needed for `tag`.
        names: of the classes of a run that is evaluated; None: all that occur.

    Raises:
        PairsError: the labels cannot be learnt, or are not among `names`.
    """
    refuse_unreadable(labels, task)
    task = task or told_task(labels, tokens)
    fresh = names is None
    values: Any
    if task == "classify":
        names, values = _classes(labels, names)
    elif task == "multilabel":
        names, values = _several(labels, names)
    elif task == "regress":
        names, values = (), _numbers(labels, fresh=fresh)
    else:
        assert tokens is not None, "the texts are read before their tags are"
        names, values = _tags(labels, tokens, names)
    weight = None if labels.weight is None else np.asarray(labels.weight, np.float32)
    if weight is not None and task == "classify" and fresh:
        _refuse_one_weighted_class(labels, names, values[weight > 0])
    return Targets(task, tuple(names), values, weight, labels.group, labels.split)


def _refuse_one_weighted_class(labels: Labels, names: Sequence[str], values: Any) -> None:
    """Raises:
    PairsError: all pairs that count have one class.
    """
    if (values == values[0]).all():
        raise PairsError(
            f"{labels.source}: all labels with a weight above 0 are "
            f"{shortened(names[int(values[0])])!r}{without_label(labels)}: there is nothing to "
            "learn"
        )


def match_targets(n: int, group: tuple[str, ...] | None, split: tuple[str, ...] | None) -> Targets:
    """Targets of `match`: every pair belongs together."""
    return Targets("match", (), np.ones(n, np.int64), None, group, split)


def _first(ids: Sequence[str], what: str) -> str:
    verb = "is" if len(ids) == 1 else "are"
    return f"{counted(len(ids), what)} (first {shortened(ids[0])!r}) {verb}"


def _classes(
    labels: Labels, known: Sequence[str] | None
) -> tuple[Sequence[str], NDArray[np.int64]]:
    lists = [i for i, v in zip(labels.ids, labels.values, strict=True) if isinstance(v, list)]
    if lists:
        raise PairsError(f"{labels.source}: {_first(lists, 'label')} lists: say --task tag")
    written = [class_name(value) for value in labels.values]
    if known is None:
        known = _sorted(set(written))
        _refuse_unlearnable(labels, written)
    number = {name: place for place, name in enumerate(known)}
    _refuse_unknown(labels, [[name] for name in written], number)
    return known, np.array([number[name] for name in written], np.int64)


def _refuse_unlearnable(labels: Labels, written: list[str]) -> None:
    counts = Counter(written)
    where = f"{labels.source}: column {labels.column}"
    if len(counts) == 1:
        raise PairsError(
            f"{where}: all {len(written):,} labels are {shortened(written[0])!r}"
            f"{without_label(labels)}: there is nothing to learn"
        )
    if len(counts) == len(written) or tuple(written) == labels.ids:
        raise PairsError(
            f"{where}: has another value for each pair: this is an id and no label "
            "(--label-column names another column)"
        )
    single = [name for name in _sorted(set(written)) if counts[name] == 1]
    if single:
        id = labels.ids[written.index(single[0])]
        plural = "class has" if len(single) == 1 else "classes have"
        raise PairsError(
            f"{where}: {len(single):,} {plural} one example (first {shortened(single[0])!r}, pair "
            f"{shortened(id)!r}): a class needs one to learn from and one to test with; "
            "join such classes or leave them out"
        )


def _refuse_unknown(labels: Labels, held: list[list[str]], known: dict[str, int]) -> None:
    unknown = [
        (id, name)
        for id, names in zip(labels.ids, held, strict=True)
        for name in names
        if name not in known
    ]
    if unknown:
        id, name = unknown[0]
        listed = shortened(", ".join(list(known)[:12]), 200)
        raise PairsError(
            f"{labels.source}: {counted(len(unknown), 'label')} of classes that the run has not "
            f"learnt (first {shortened(name)!r}, pair {shortened(id)!r}): it knows {listed}"
            f"{', ...' if len(known) > 12 else ''}"
        )


def _several(
    labels: Labels, known: Sequence[str] | None
) -> tuple[Sequence[str], NDArray[np.float32]]:
    held = [_names_of(value) for value in labels.values]
    if known is None:
        known = _sorted({name for names in held for name in names})
        if not known:
            raise PairsError(f"{labels.source}: column {labels.column}: no pair has a class")
    number = {name: place for place, name in enumerate(known)}
    _refuse_unknown(labels, held, number)
    values = np.zeros((len(held), len(known)), np.float32)
    for row, names in enumerate(held):
        values[row, [number[name] for name in names]] = 1
    if len(held) > 1 and (values == values[0]).all():
        raise PairsError(
            f"{labels.source}: column {labels.column}: all labels are the same"
            f"{without_label(labels)}: there is nothing to learn"
        )
    return known, values


def _names_of(value: Raw) -> list[str]:
    items = listed(value)
    if items is None:
        items = str(class_name(value)).split("|")
    names = [class_name(item) for item in items if not is_missing(item)]
    return list(dict.fromkeys(names))


def _numbers(labels: Labels, fresh: bool) -> NDArray[np.float32]:
    numbers = [number_of(value) for value in labels.values]
    bad = [
        id
        for id, number in zip(labels.ids, numbers, strict=True)
        if number is None or not math.isfinite(number)
    ]
    if bad:
        value = labels.values[labels.ids.index(bad[0])]
        raise PairsError(
            f"{labels.source}: {_first(bad, 'label')} no number ({shortened(str(value))!r}): "
            "--task regress takes finite numbers"
        )
    values = np.array(numbers, np.float64)
    if fresh:
        refuse_unusable_numbers(labels, values, f"{labels.source}: column {labels.column}")
    return values.astype(np.float32)


def _tags(
    labels: Labels, tokens: Tokens, known: Sequence[str] | None
) -> tuple[Sequence[str], NDArray[np.int64]]:
    tags = [tags_of(value) for value in labels.values]
    bad = [row for row, found in enumerate(tags) if len(found) not in _lengths(tokens, row)]
    if bad:
        row = bad[0]
        real, stored = int(tokens.real[row].sum()), int(tokens.stored[row])
        padded = f" ({stored:,} with padding)" if stored != real else ""
        verb = "list is" if len(bad) == 1 else "lists are"
        words = all(listed(value) is None for value in labels.values)
        other = (
            "--task classify takes each text as a class"
            if words
            else "--task multilabel takes lists of classes of the whole pair"
        )
        raise PairsError(
            f"{labels.source}: {len(bad):,} tag {verb} of another length than the text (first "
            f"{shortened(labels.ids[row])!r}: {counted(len(tags[row]), 'tag')} for "
            f"{counted(real, 'token')}{padded}): --task tag takes one a text token; "
            f"{other}"
        )
    places = [
        np.arange(len(found)) if len(found) == tokens.stored[row] else tokens.real[row].nonzero()[0]
        for row, found in enumerate(tags)
    ]
    if known is None:
        known = _sorted({tag for found in tags for tag in found if tag is not None})
        if len(known) < 2:
            raise PairsError(
                f"{labels.source}: column {labels.column}: all tags are "
                f"{shortened(known[0]) if known else 'empty'!r}{without_label(labels)}: there is "
                "nothing to learn"
            )
    number = {name: place for place, name in enumerate(known)}
    _refuse_unknown(labels, [[tag for tag in found if tag is not None] for found in tags], number)
    longest = tokens.real.shape[1]
    values = np.full((len(tags), longest), IGNORED, np.int64)
    for row, (found, where) in enumerate(zip(tags, places, strict=True)):
        for place, tag in zip(where.tolist(), found, strict=True):
            if tag is not None and place < longest and tokens.real[row, place]:
                values[row, place] = number[tag]
    return known, values


def _lengths(tokens: Tokens, row: int) -> tuple[int, int]:
    """How long a list of tags may be: one a token in the file, or one a token but padding."""
    return int(tokens.stored[row]), int(tokens.real[row].sum())


def tags_of(value: Raw) -> list[str | None]:
    """The tags of a text as they are written; None where a token has none."""
    items: list[Any] | None = listed(value)
    if items is None:
        items = list(str(class_name(value)).split())
    return [None if is_no_tag(tag) else class_name(tag) for tag in items]


def is_no_tag(item: Any) -> bool:
    """Whether an item of a list of tags, or a word, says that the token has none: null, -100 as a
    number or as text, or nothing but blanks."""
    return item is None or class_name(item) in ("", _NO_TAG)


def class_name(value: Any) -> str:
    """A class as text: 1, 1.0 and "1.0" are one class, and true is `true`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return whole[1] if (whole := _WHOLE.fullmatch(text)) else text


def _sorted(names: set[str]) -> list[str]:
    """Numbers by size, else by text."""
    numbers = {name: number_of(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return sorted(names, key=lambda name: (numbers[name], name))
    return sorted(names)
