"""Labels as they are written, brought to the pairs: which pair has which, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from fusecli.errors import PairsError, shortened
from fusecli.training.label_columns import (
    Raw,
    first_of,
    groups_of,
    is_missing,
    own_group,
    splits_of,
    weights_of,
)
from fusecli.training.label_rows import ID, read_rows
from fusecli.training.options import LabelOptions
from fusecli.training.targets import Task

LABEL, GROUP, SPLIT, WEIGHT = "label", "group", "split", "weight"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Labels:
    """The labels of the pairs that have one.

    Attributes:
        source: the file that they come from, for messages.
        column: their column.
        rows: numbers of the pairs that have one, ascending.
        ids: of those pairs.
        values: their labels as written.
        group: a name a pair, or None.
        split: "train", "validation" or "test" a pair, or None.
        weight: a number a pair, or None.
        group_column: the column of the groups.
        without: how many pairs have no label, and so are left out.
    """

    source: str
    column: str
    rows: tuple[int, ...]
    ids: tuple[str, ...]
    values: tuple[Raw, ...]
    group: tuple[str, ...] | None
    split: tuple[str, ...] | None
    weight: tuple[float, ...] | None
    group_column: str = GROUP
    without: int = 0

    def own_group(self, id: str) -> str:
        """The group of a pair that the table gives none."""
        return own_group(id)


@dataclass(frozen=True)
class _Row:
    label: Raw
    group: Any
    split: Any
    weight: Any


def columns_wanted(options: LabelOptions) -> tuple[str, str, str, str]:
    """The columns that are looked for: of the label, the group, the split and the weight."""
    return options.column or LABEL, options.group or GROUP, SPLIT, WEIGHT


def labels_of_file(options: LabelOptions, pair_ids: Sequence[str], tell: Tell) -> Labels:
    """Read a table of labels and bring it to the pairs by id.

    Args:
        options: `file` is the table.
        pair_ids: of all pairs, in their order.
        tell: receives what is left out.

    Raises:
        UsageError: the file has another ending than those that can be read.
        PairsError: a column is missing, an id comes twice, nothing matches, or (strict) not
            every label has a pair and every pair a label.
    """
    file = options.file
    assert file is not None
    label, group, split, weight = columns_wanted(options)
    table: dict[str, _Row] = {}
    columns: set[str] = set()
    for record in read_rows(file):
        columns.update(record)
        id = _id(record.get(ID), file)
        if id in table:
            raise PairsError(f"{file}: has the id {shortened(id)!r} twice: ids must differ")
        table[id] = _Row(
            record.get(label), record.get(group), record.get(split), record.get(weight)
        )
    if not table:
        raise PairsError(f"{file}: has no rows")
    _check_there(options, columns, file)
    known = set(pair_ids)
    orphans = [id for id in table if id not in known]
    remedy = _remedy_for_ids(orphans, known - table.keys())
    if len(orphans) == len(table):
        raise PairsError(
            f"{file}: no id is that of a pair: labels are of {shortened(orphans[0])!r}, ..., "
            f"pairs are {shortened(pair_ids[0])!r}, ...{remedy}"
        )
    unused = sorted(columns - {ID, label, group, split, weight})
    if unused:
        tell(f"note: {file}: not used: {shortened(', '.join(unused), 200)}")
    found = _Table(file, [table.get(id) for id in pair_ids], orphans, remedy)
    return _matched(options, found, pair_ids, tell)


def labels_of_pairs(
    options: LabelOptions,
    manifest: str,
    pair_ids: Sequence[str],
    extra: Sequence[Sequence[str]],
    tell: Tell,
) -> Labels:
    """Labels from columns of the manifest.

    Args:
        options: names of columns.
        manifest: its path, for messages.
        pair_ids: of all pairs, in their order.
        extra: of each pair, the values of `columns_wanted`; "" where there is none.
        tell: receives what is left out.

    Raises:
        PairsError: as `labels_of_file`.
    """
    names = columns_wanted(options)
    rows = [_Row(*values) for values in extra]
    there = {
        name for place, name in enumerate(names) if any(values[place] != "" for values in extra)
    }
    _check_there(options, there, manifest)
    return _matched(options, _Table(manifest, list(rows)), pair_ids, tell)


def _remedy_for_ids(orphans: Sequence[str], free: Set[str]) -> str:
    """What differs in ids that are nearly those of pairs without a label."""
    if not free:
        return ""
    stems = {os.path.splitext(os.path.basename(id))[0] for id in orphans}
    if stems & free:
        return "; an id is the file's name without its ending"
    changes: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("blanks at their ends", str.strip),
        ("capital letters", str.lower),
        ("zeros in front", lambda id: id.lstrip("0")),
    )
    for what, change in changes:
        if {change(id) for id in orphans} & {change(id) for id in free}:
            return f"; some ids differ in {what} only"
    return ""


def _check_there(options: LabelOptions, columns: set[str], file: str) -> None:
    label, group, _, _ = columns_wanted(options)
    listed = shortened(", ".join(sorted(columns)), 200) or "none"
    if label not in columns:
        remedy = "" if options.column else " (--label-column names another)"
        raise PairsError(f"{file}: has no column {label}{remedy}: columns are {listed}")
    if options.group is not None and group not in columns:
        raise PairsError(f"{file}: has no column {group} (--group): columns are {listed}")
    if label == ID:
        raise PairsError(f"{file}: --label-column {ID}: an id tells pairs apart and is no label")


def _id(value: Any, file: str) -> str:
    if isinstance(value, str) and value:
        return value
    if type(value) is int:
        return str(value)
    raise PairsError(f"{file}: an id is {shortened(repr(value))}: expected text or a whole number")


@dataclass(frozen=True)
class _Table:
    """Rows of a table of labels, brought to the pairs.

    Attributes:
        source: the file, for messages.
        rows: of each pair; None: it is not in the table.
        orphans: ids of the table that no pair has.
        remedy: what may be wrong with these ids, for messages.
    """

    source: str
    rows: list[_Row | None]
    orphans: list[str] = field(default_factory=list)
    remedy: str = ""


def _matched(options: LabelOptions, table: _Table, pair_ids: Sequence[str], tell: Tell) -> Labels:
    """The labels of the pairs that have one; what is left out is said.

    Raises:
        PairsError: no pair has a label; (strict) one side has no partner.
    """
    label_column, group_column, _, _ = columns_wanted(options)
    kept, missing = _with_label(options, table, pair_ids, tell)
    problems = []
    if table.orphans:
        problems.append(f"{first_of(table.orphans, 'label')} without a pair")
    if missing:
        problems.append(f"{first_of(missing, 'pair')} without a label")
    said = f"{table.source}: {' and '.join(problems)}"
    if problems and options.strict:
        raise PairsError(f"--strict-pairs: {said}{table.remedy}")
    if not kept:
        raise PairsError(f"{table.source}: no pair has a label in the column {label_column}")
    if problems:
        tell(f"warning: {said}: left out{table.remedy}")
    rows = [table.rows[number] or _Row("", None, None, None) for number in kept]
    ids = tuple(pair_ids[number] for number in kept)
    return Labels(
        table.source,
        label_column,
        tuple(kept),
        ids,
        tuple(row.label if row.label is not None else "" for row in rows),
        groups_of([row.group for row in rows], ids),
        splits_of([row.split for row in rows], ids, table.source),
        weights_of([row.weight for row in rows], ids, table.source),
        group_column,
        len(missing),
    )


def _with_label(
    options: LabelOptions, table: _Table, pair_ids: Sequence[str], tell: Tell
) -> tuple[list[int], list[str]]:
    """Numbers of the pairs that have a label, and ids of those that have none.

    An empty cell among labels of several classes is a label: none of the classes.
    """
    several = options.task == "multilabel" or (options.task is None and _any_bar(table.rows))
    kept: list[int] = []
    missing: list[str] = []
    empty: list[str] = []
    for number, (id, row) in enumerate(zip(pair_ids, table.rows, strict=True)):
        if row is not None and not is_missing(row.label):
            kept.append(number)
        elif row is not None and several and row.label == "":
            kept.append(number)
            empty.append(id)
        else:
            missing.append(id)
    if kept and empty:
        tell(
            f"note: {table.source}: {first_of(empty, 'label')} empty: taken as none of the classes"
        )
    return kept, missing


def _any_bar(found: Iterable[_Row | None]) -> bool:
    return any(row is not None and isinstance(row.label, str) and "|" in row.label for row in found)


def task_said(task: Task, told: bool, names: Sequence[str]) -> str:
    """What is said about the task, in one line."""
    how = "asked for" if told else "told by the labels; --task says another"
    classes = ""
    if names:
        listed = ", ".join(shortened(name, 24) for name in names[:6])
        classes = f", {len(names):,} classes: {listed}{', ...' if len(names) > 6 else ''}"
    return f"note: task {task} ({how}){classes}"
