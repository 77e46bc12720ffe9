"""What is to be said of the pairs that are read: counted by kind, one line a kind."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TypeVar

import numpy as np

from fusecli.errors import counted
from fusecli.features.axes import Side
from fusecli.pairs.reader import PairFeatures, SideFeatures
from fusecli.report import feature_diagnoses, shape_diagnoses
from fusecli.report.report import Diagnosis, Note

_SAMPLES = "rows-are-samples"  # the code of a diagnosis

Said = TypeVar("Said", Diagnosis, Note)


class SaidOfPairs:
    """Notes and diagnoses of pairs, each pair counted once; several threads may add.

    Args:
        n: how many pairs there are.
    """

    def __init__(self, n: int) -> None:
        self._lock = Lock()
        self._seen = np.zeros(n, np.bool_)
        # By kind: how many pairs, and what is said of the first.
        self._warnings: dict[str, tuple[int, str]] = {}
        self._notes: dict[str, tuple[int, str]] = {}

    def add(self, row: int, features: PairFeatures) -> None:
        """Count what is to be said of one pair; a pair that was counted before is left out."""
        with self._lock:
            if self._seen[row]:
                return
            self._seen[row] = True
        found = _diagnoses(features)
        notes = [Note("reading", note) for note in features.shapes.notes]
        notes += feature_diagnoses.used_masks(
            features.image_side.used_mask, features.text_side.used_mask
        )
        notes += features.notes
        if not (found or notes):
            return
        with self._lock:
            for diagnosis in _first_of_each(found):
                _count(self._warnings, diagnosis.code, str(diagnosis))
            for note in _first_of_each(notes):
                _count(self._notes, note.counted_as(self._notes), str(note))

    def lines(self) -> list[str]:
        """One line a kind, the more serious first: how many pairs, and what the first has."""
        with self._lock:
            same, _ = self._warnings.get(_SAMPLES, (0, ""))
            if same < self._seen.sum():  # some pairs have as many words as patches by chance
                self._warnings.pop(_SAMPLES, None)
        return [
            f"{level}: {counted(number, 'pair')}: {first}"
            for level, kinds in (("warning", self._warnings), ("note", self._notes))
            for number, first in kinds.values()
        ]


def _first_of_each(found: Sequence[Said]) -> list[Said]:
    """The first of each code."""
    return list({each.code: each for each in reversed(found)}.values())[::-1]


def _count(kinds: dict[str, tuple[int, str]], code: str, message: str) -> None:
    number, first = kinds.get(code, (0, message))
    kinds[code] = number + 1, first


def _diagnoses(features: PairFeatures) -> list[Diagnosis]:
    shapes = features.shapes
    found = [
        *shape_diagnoses.same_row_counts(shapes.image, shapes.text, in_batch=True),
        *shape_diagnoses.sequence_first_stacks(*features.stacks),
        *shape_diagnoses.transposed(shapes.image, shapes.text.width),
        *shape_diagnoses.transposed(shapes.text, shapes.image.width),
    ]
    for side in (features.image_side, features.text_side):
        if side.rows.odd:
            found += _of_rows(side, "image" if side is features.image_side else "text")
    return found


def _of_rows(side: SideFeatures, name: Side) -> list[Diagnosis]:
    used = None if side.mask is None or side.used_mask is None else side.used_mask
    return feature_diagnoses.of_rows(name, side.rows, used, side.where, "float32", in_batch=True)
