"""The cells of a table of labels: labels, groups, parts and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fusecli.errors import PairsError, counted, shortened

_PART_OF = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}

_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-20, 1e20  # besides 0; sums of them fit into float32

# A label as it is written: text, a number, a truth value, a list of tags, or nothing.
Raw = str | int | float | bool | list[Any] | None


def is_missing(value: Raw) -> bool:
    """Whether there is no label: null, or nothing but blanks."""
    return value is None or (isinstance(value, str) and not value.strip())


def groups_of(values: list[Any], ids: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names of groups, without blanks around them; a pair without one is a group of its own."""
    if all(is_missing(value) for value in values):
        return None
    return tuple(
        own_group(id) if is_missing(value) else str(value).strip()
        for value, id in zip(values, ids, strict=True)
    )


def splits_of(values: list[Any], ids: tuple[str, ...], source: str) -> tuple[str, ...] | None:
    if all(is_missing(value) for value in values):
        return None
    wrong = [
        (id, value)
        for id, value in zip(ids, values, strict=True)
        if str(value or "").strip().lower() not in _PART_OF
    ]
    if wrong:
        _, value = wrong[0]
        raise PairsError(
            f"{source}: {first_of([id for id, _ in wrong], 'pair')} with the split "
            f"{shortened(str(value or ''))!r}: expected train, validation or test"
        )
    return tuple(_PART_OF[str(value).strip().lower()] for value in values)


def weights_of(values: list[Any], ids: tuple[str, ...], source: str) -> tuple[float, ...] | None:
    if all(is_missing(value) for value in values):
        return None
    numbers = []
    for id, value in zip(ids, values, strict=True):
        number = number_of(value)
        if number is None or not (number == 0 or _LEAST_WEIGHT <= number <= _LARGEST_WEIGHT):
            shown = shortened(str("" if value is None else value))
            raise PairsError(
                f"{source}: the weight of {shortened(id)!r} is {shown!r}: expected a number, 0 or "
                f"more{_limits(number)}"
            )
        numbers.append(number)
    if not any(numbers):
        raise PairsError(f"{source}: all weights are 0")
    return tuple(numbers)


def _limits(number: float | None) -> str:
    """Of weights, for a number that would be lost in float32."""
    if number is None or not math.isfinite(number) or number < 0:
        return ""
    return f" (from {_LEAST_WEIGHT:g} to {_LARGEST_WEIGHT:g}): multiply all weights by a constant"


def number_of(value: Any) -> float | None:
    """The number that a value is or spells, NaN included; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def own_group(id: str) -> str:
    return f"pair\0{id}"


def first_of(ids: Sequence[str], what: str) -> str:
    return f"{counted(len(ids), what)} (first {shortened(ids[0])!r})"
