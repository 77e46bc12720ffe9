"""Results of an earlier run that the one which begins anew does not vouch for."""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.pair_inputs import files_of
from fusecli.batch.store.journal import read_entries
from fusecli.features.formats.table import WRITABLE_ENDINGS
from fusecli.pairs.open import Pair

_KEPT = 4096  # folders and inputs that were looked at last


def remove_results(folder: str, journals: Iterable[str], pairs: Iterable[Pair]) -> None:
    """Remove the files of single pairs that journals name; 8 bytes for each input in memory.

    A journal is a file like any other: what it names outside the folder stays, and what is no
    regular file, or an input of the run that begins.

    Args:
        folder: the output folder.
        journals: of the earlier run.
        pairs: of the run that begins.

    Raises:
        OSError: a file cannot be removed.
    """
    root = os.path.realpath(folder)
    inside = lru_cache(_KEPT)(lambda path: _lies_in(os.path.realpath(path), root))
    inputs: NDArray[np.int64] | None = None
    for journal in journals:
        for entry in read_entries(journal):
            if entry.at is not None or not _may_be_result(entry.output):
                continue
            path = os.path.join(folder, str(entry.output))
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = os.lstat(path)
                if not stat.S_ISREG(status.st_mode) or not inside(os.path.dirname(path)):
                    continue
                if inputs is None:
                    inputs = _identities(pairs)
                identity = np.int64(hash((status.st_dev, status.st_ino)))
                index = int(np.searchsorted(inputs, identity))
                if index == len(inputs) or inputs[index] != identity:
                    os.unlink(path)


def _may_be_result(output: object) -> bool:
    """Whether a path is of the kind that results have: relative, nothing hidden, an ending."""
    if not isinstance(output, str) or "\0" in output:
        return False
    parts = output.split("/")
    ending = os.path.splitext(output)[1].lower()
    return ending in WRITABLE_ENDINGS and all(part and part[0] != "." for part in parts)


def _lies_in(path: str, root: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))


def _identities(pairs: Iterable[Pair]) -> NDArray[np.int64]:
    """What tells the inputs from other files, by whatever name they are read; sorted."""
    look = lru_cache(_KEPT)(_identity)
    found = array("q")
    for pair in pairs:
        found.extend(each for name in files_of(pair) if (each := look(name)) is not None)
    identities = np.array(found, np.int64)
    identities.sort()
    return identities


def _identity(name: str) -> int | None:
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return hash((status.st_dev, status.st_ino))
