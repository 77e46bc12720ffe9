"""What is wrong with labels as they are written, or looks wrong."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import PairsError, counted, shortened
from fusecli.training.label_columns import Raw, number_of
from fusecli.training.labels import Labels
from fusecli.training.targets import Task

# Words that programs write for a missing value. They may be classes as well, so they are named.
_MISSING = {"none", "null", "na", "n/a", "<na>", "nil", "-", "?", "missing", "unknown"}
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d*,\d+\s*")
_THOUSANDS = re.compile(r"\s*[-+]?\d{1,3}(,\d{3})+(\.\d*)?\s*")
_WITH_UNIT = re.compile(r"\s*[$€£]?\s*[-+]?\d+([.,]\d+)?\s*[%$€£]?\s*")
_OR_CLASSES = "; if they are classes, say --task classify"
_QUOTES = "'\"`\u2018\u2019\u201c\u201d"
# Characters that NFKC takes for others, although a reader sees the difference, such as a raised 2.
_SEEN = ("<super>", "<sub>", "<circle>", "<fraction>")
_FEW = 20  # different numbers with a unit that may be classes
_LAST_DIGITS = re.compile(r"(\d+)\D*$")


def refuse_unreadable(labels: Labels, task: Task | None) -> None:
    """Refuse what cannot be a label, or is most likely not meant as it is written.

    Args:
        labels: as written.
        task: that was asked for; None: it is told by the labels. Who asks for classes may have
            classes that look like numbers.

    Raises:
        PairsError: labels that are objects, lists of lists, lists in Python's spelling, NaN; where
            they may be numbers, numbers with a unit or a comma, or numbers but for a few.
    """
    _refuse(labels, lambda v: isinstance(v, dict), "an object", "expected text, a number or a list")
    _refuse(
        labels,
        lambda v: any(isinstance(item, list | dict) for item in listed(v) or ()),
        "a list of lists",
        'expected a list of tags, such as ["A", "B"]',
    )
    _refuse(
        labels,
        lambda v: isinstance(v, str) and v.strip()[:1] == "[" and listed(v) is None,
        "no JSON",
        'a list of tags is written as ["A", "B"], with double quotes',
    )
    _refuse(
        labels,
        lambda v: (number := number_of(v)) is not None and math.isnan(number),
        "NaN",
        "give a value, or leave the cell empty",
    )
    if task in (None, "regress"):
        _refuse_broken_numbers(labels, "" if task else _OR_CLASSES)


def _refuse(labels: Labels, is_bad: Callable[[Raw], bool], what: str, remedy: str) -> None:
    bad = [i for i, value in enumerate(labels.values) if is_bad(value)]
    if bad:
        verb, first = "is" if len(bad) == 1 else "are", shortened(labels.ids[bad[0]])
        count = counted(len(bad), "label")
        raise PairsError(f"{labels.source}: {count} (first {first!r}) {verb} {what}: {remedy}")


def _refuse_broken_numbers(labels: Labels, otherwise: str) -> None:
    """Numbers that a few words stand between would become a class each.

    Args:
        labels: as written.
        otherwise: what else can be done, for messages.
    """
    numbers = [number_of(value) for value in labels.values]
    words = [i for i, number in enumerate(numbers) if number is None]
    texts = {i: str(labels.values[i]) for i in words}
    thousands = [i for i in words if _THOUSANDS.fullmatch(texts[i])]
    if thousands and len(thousands) == len(words):
        raise PairsError(
            f"{labels.source}: {counted(len(thousands), 'label')} (first "
            f"{shortened(labels.ids[thousands[0]])!r}: {texts[thousands[0]]!r}) with commas: are "
            f"they thousands or decimals? write 1234.5, without a comma{otherwise}"
        )
    units = [i for i in words if _WITH_UNIT.fullmatch(texts[i]) and "," not in texts[i]]
    if units and len(units) == len(words) and len(set(texts.values())) > _FEW:
        raise PairsError(
            f"{labels.source}: {counted(len(units), 'label')} (first "
            f"{shortened(labels.ids[units[0]])!r}: {texts[units[0]]!r}) with a unit: write the "
            f"number alone{otherwise}"
        )
    comma = [i for i in words if _DECIMAL_COMMA.fullmatch(texts[i])]
    if comma and len(comma) == len(words):
        raise PairsError(
            f"{labels.source}: {counted(len(comma), 'label')} (first {labels.ids[comma[0]]!r}: "
            f"{labels.values[comma[0]]!r}) with a decimal comma: write a point{otherwise}"
        )
    known = [number for number in numbers if number is not None]
    fractions = sum(number != int(number) for number in known if math.isfinite(number))
    if words and fractions > len(labels.values) // 2:
        first = words[0]
        verb = "is" if len(words) == 1 else "are"
        raise PairsError(
            f"{labels.source}: {len(known):,} labels are numbers and {len(words):,} {verb} not "
            f"(first {shortened(labels.ids[first])!r}: {shortened(str(labels.values[first]))!r}): "
            f"leave the cell empty where there is no value{otherwise}"
        )


def doubts(labels: Labels, names: Sequence[str]) -> list[str]:
    """Warnings about classes that may be slips of the pen: missing values, and names that look
    alike.

    Args:
        labels: for their source.
        names: of the classes.
    """
    found = []
    words = [name for name in names if name.lower() in _MISSING]
    if words:
        found.append(
            f"warning: {labels.source}: taken as a class: {', '.join(map(repr, words))}: leave the "
            "cell empty if it means that there is no label"
        )
    found += _alike(labels, names, str.lower, "differ in case only")
    first: dict[str, str] = {}  # of those that differ in case
    for name in names:
        first.setdefault(name.lower(), name)
    return found + _alike(labels, list(first.values()), _plain, "look alike")


def _alike(labels: Labels, names: Sequence[str], key: Callable[[str], str], how: str) -> list[str]:
    spelt: dict[str, list[str]] = {}
    for name in names:
        if key(name):
            spelt.setdefault(key(name), []).append(name)
    twice = [alike for alike in spelt.values() if len(alike) > 1]
    if not twice:
        return []
    alike = shortened(", ".join(map(ascii if how == "look alike" else repr, twice[0])), 60)
    more = f" and {len(twice) - 1:,} more" if len(twice) > 1 else ""
    return [
        f"warning: {labels.source}: classes that {how}: {alike}{more}: each is a class of its own"
    ]


def _plain(name: str) -> str:
    """A name without what a reader may not see: quotation marks around it, blanks at its ends or
    several in a row, characters without a width, how accents are kept. "" if nothing is left."""
    seen = "".join(
        c if unicodedata.decomposition(c).startswith(_SEEN) else unicodedata.normalize("NFKC", c)
        for c in unicodedata.normalize("NFC", name)
        if unicodedata.category(c) != "Cf"
    )
    words = unicodedata.normalize("NFC", seen).lower().replace("_", " ").split()
    return " ".join(words).strip(_QUOTES + " ")


def refuse_unusable_numbers(labels: Labels, values: NDArray[np.float64], name: str) -> None:
    """For `regress`.

    Args:
        labels: as written.
        values: float64 [n], finite.
        name: of the labels, for messages.

    Raises:
        PairsError: all numbers are equal, count the pairs, or do not fit into float32.
    """
    largest = float(np.finfo(np.float32).max)
    if (np.abs(values) > largest).any():
        first = int(np.argmax(np.abs(values)))
        raise PairsError(
            f"{name}: the label of {shortened(labels.ids[first])!r} is {values[first]:g}: expected "
            f"at most {largest:.2g}; divide the labels by a constant"
        )
    single = values.astype(np.float32)
    if (single == single[0]).all():
        raise PairsError(
            f"{name}: all {len(values):,} labels are {values[0]:g}{without_label(labels)}: there "
            "is nothing to learn"
        )
    steps = np.diff(values)
    if _are_ids(labels, values) or ((steps == 1).all() and values[0] in (0, 1)):
        raise PairsError(
            f"{name}: counts the pairs: this is an id and no label "
            "(--label-column names another column)"
        )


def without_label(labels: Labels) -> str:
    """How many pairs have no label: where all labels are equal, blank cells may have been meant
    as the other class."""
    if not labels.without:
        return ""
    verb = "has" if labels.without == 1 else "have"
    pairs = counted(labels.without, "pair")
    return f" and {pairs} {verb} no label (a missing label is no class: write one)"


def _are_ids(labels: Labels, values: NDArray[np.float64]) -> bool:
    """Whether each label is the number at the end of the pair's id."""
    found = [_LAST_DIGITS.search(id) for id in labels.ids]
    return all(
        match is not None and float(match[1]) == value
        for match, value in zip(found, values.tolist(), strict=True)
    )


def listed(value: Raw) -> list[Any] | None:
    """A list, also one that is written as JSON in a column of text; None if it is none."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, list) else None
    return None
