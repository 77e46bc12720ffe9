"""Which pairs a run has learnt from, by its `split.csv`."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, counted
from fusecli.features.file import open_regular
from fusecli.features.formats.base import one_line
from fusecli.fusion.run_sums import check_sum, sums_of_run
from fusecli.training.examples import Examples

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Learnt:
    """The pairs that weights were fitted or chosen on.

    Attributes:
        pairs: id and image of each.
        images: all of them.
    """

    pairs: frozenset[tuple[str, str]]
    images: frozenset[str]

    def known(self, examples: Examples, rows: Rows) -> NDArray[np.bool_]:
        """Which of these rows are such pairs. [len(rows)]"""
        return np.array(
            [(examples.ids[row], examples.image_key[row]) in self.pairs for row in rows.tolist()],
            bool,
        )

    def of_predictions(self, examples: Examples) -> str:
        """How many predictions are of such pairs; "" where none is."""
        known = int(self.known(examples, np.arange(examples.n)).sum())
        if not known:
            return ""
        of_them = "its prediction is" if known == 1 else "their predictions are"
        return (
            f"{known:,} of {counted(examples.n, 'pair')} stood in training or validation of this "
            f"run: {of_them} no measure of it"
        )


def read_learnt(path: str) -> Learnt:
    """Read the `split.csv` of a run.

    With `--folds` it has a column `fold` in place of `split`: the weights are of all pairs.

    Raises:
        FeatureFileError: the list is not there, or damaged.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
        rows = list(reader)
    except (ValueError, csv.Error) as error:
        raise FeatureFileError(
            f"{path}: is damaged, {one_line(error)}: without it pairs that the run has learnt "
            "from cannot be left out; copy the run's folder again"
        ) from None
    part = "fold" if "fold" in (reader.fieldnames or ()) else "split"
    if any(row.get(name) is None for row in rows for name in ("id", "image", part)):
        raise FeatureFileError(
            f"{path}: is damaged, a row has not the columns id, image and split: without them "
            "pairs that the run has learnt from cannot be left out; copy the run's folder again"
        )
    folder, name = os.path.split(path)
    check_sum(sums_of_run(folder), folder, name, hashlib.sha256(content).hexdigest())
    learnt = [row for row in rows if row.get("split") != "test" and row["image"]]
    return Learnt(
        frozenset((row["id"], row["image"]) for row in learnt),
        frozenset(row["image"] for row in learnt),
    )
