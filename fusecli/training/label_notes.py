"""Notes on what is taken from a table of labels, and on what is assumed where it is not clear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusecli.errors import counted, shortened
from fusecli.training.encode import Tokens, class_name, is_no_tag, tags_of
from fusecli.training.label_checks import listed
from fusecli.training.label_columns import Raw, first_of, is_missing
from fusecli.training.labels import Labels
from fusecli.training.split import PARTS
from fusecli.training.targets import Targets, Task

_LISTED = 3  # spellings that are named


def column_notes(labels: Labels, split: bool = True) -> list[str]:
    """One line for each of the columns group, split and weight that is used.

    Args:
        labels: as written.
        split: whether the parts are used as they are given.
    """
    found = []
    if labels.group is not None:
        found.append(f"column {labels.group_column}: {_said_groups(labels, labels.group)}")
    if split and labels.split is not None:
        counts = Counter(labels.split)
        parts = ", ".join(f"{counts[part]:,} {part}" for part in PARTS if counts[part])
        found.append(f"column split: {parts}")
    if labels.weight is not None:
        found.append(f"column weight: {_said_weights(labels, labels.weight)}")
    return [f"note: {labels.source}: {line}" for line in found]


def _said_groups(labels: Labels, group: Sequence[str]) -> str:
    own = [id for id, name in zip(labels.ids, group, strict=True) if name == labels.own_group(id)]
    text = counted(len(set(group)), "group")
    if own:
        text += f"; {first_of(own, 'pair')} without a group: each is a group of its own"
    return text


def _said_weights(labels: Labels, weight: Sequence[float]) -> str:
    text = f"from {min(weight):g} to {max(weight):g}"
    zero = [id for id, number in zip(labels.ids, weight, strict=True) if number == 0]
    if zero:
        text += f"; {first_of(zero, 'pair')} with weight 0: not counted"
    return text


def spelling_notes(labels: Labels, targets: Targets, tokens: Tokens | None = None) -> list[str]:
    """What is said where labels are not taken exactly as they are written.

    Args:
        labels: as written.
        targets: made of them.
        tokens: of the texts; for `tag`.
    """
    notes = []
    if targets.task in ("classify", "multilabel", "tag"):
        notes += _joined_spellings(labels, targets.task)
    if targets.task == "multilabel":
        notes += _repeated_classes(labels)
    if targets.task == "tag":
        notes += _tokens_without_tag(labels, tokens)
    return [f"note: {labels.source}: {line}" for line in notes]


def _joined_spellings(labels: Labels, task: Task) -> list[str]:
    """Spellings that are one class: ' yes' and 'yes', 1 and 1.0."""
    spellings: dict[str, dict[str, None]] = {}
    for value in labels.values:
        for item in _items(value, task):
            if not (is_no_tag(item) if task == "tag" else is_missing(item)):
                spellings.setdefault(class_name(item), {})[_shown(item)] = None
    joined = [(name, list(shown)) for name, shown in spellings.items() if len(shown) > 1]
    if not joined:
        return []
    name, shown = joined[0]
    listing = ", ".join(shown[:_LISTED]) + (", ..." if len(shown) > _LISTED else "")
    more = f"; {len(joined) - 1:,} more likewise"
    return [
        f"{shortened(listing, 100)} are taken as one class, {shortened(name)}"
        f"{more if len(joined) > 1 else ''}"
    ]


def _shown(item: Any) -> str:
    return repr(item) if isinstance(item, str) else str(item)


def _items(value: Raw, task: Task) -> list[Any]:
    """The classes of a label as they are written."""
    if task == "classify":
        return [value]
    items = listed(value)
    if items is not None:
        return items
    return str(value).split("|") if task == "multilabel" else str(value).split()


def _repeated_classes(labels: Labels) -> list[str]:
    twice, nothing = [], []
    for id, value in zip(labels.ids, labels.values, strict=True):
        items = _items(value, "multilabel")
        names = [class_name(item) for item in items if not is_missing(item)]
        if len(set(names)) < len(names):
            twice.append(id)
        if len(names) < len(items) and len(items) > 1:
            nothing.append(id)
    notes = []
    if twice:
        notes.append(f"{first_of(twice, 'label')} with a class twice: counted once")
    if nothing:
        notes.append(f"{first_of(nothing, 'label')} with an empty class: left out")
    return notes


def _tokens_without_tag(labels: Labels, tokens: Tokens | None) -> list[str]:
    none, count, padding = [], 0, []
    for row, (id, value) in enumerate(zip(labels.ids, labels.values, strict=True)):
        tags = tags_of(value)
        real = np.ones(len(tags), bool)
        if tokens is not None and len(tags) == tokens.stored[row]:
            real[:] = False
            own = tokens.real[row][: len(tags)]
            real[: len(own)] = own
        empty = sum(tag is None and bool(is_real) for tag, is_real in zip(tags, real, strict=True))
        if empty:
            none.append(id)
            count += empty
        if any(tag is not None and not is_real for tag, is_real in zip(tags, real, strict=True)):
            padding.append(id)
    notes = []
    if none:
        notes.append(
            f"{counted(count, 'token')} of {first_of(none, 'pair')} without a tag (null, -100 or "
            "empty): not counted"
        )
    if padding:
        notes.append(f"{first_of(padding, 'pair')} with tags at padding tokens: these are not used")
    return notes
