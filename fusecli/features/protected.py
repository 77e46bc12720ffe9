"""Files that no command may change: its inputs, weights, manifest, labels and reports.

A file is known by device and inode, whatever name leads to it. Ask before every write, rename
and unlink.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import OutputError

_KEPT = 4096  # names that were looked at last


class ProtectedFiles:
    """A set of files that stay as they are; 8 bytes a file in memory.

    Args:
        names: gives the paths; called when the first existing file is asked about, since for
            most runs nothing is in the way and no file has to be looked at.
    """

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        self._identities: NDArray[np.int64] | None = None

    def holds(self, status: os.stat_result | None) -> bool:
        """Whether a file, by what `lstat` or `fstat` says of it, is one of them."""
        if status is None:
            return False
        if self._identities is None:
            self._identities = _identities_of(self._names())
        identity = np.int64(hash((status.st_dev, status.st_ino)))
        index = int(np.searchsorted(self._identities, identity))
        return index < len(self._identities) and bool(self._identities[index] == identity)

    def check(self, path: str) -> None:
        """Refuse a path that leads to one of them; also if the path is a link to it.

        Raises:
            OutputError: it does.
        """
        for look in (os.lstat, os.stat):
            try:
                status = look(path)
            except (OSError, ValueError):
                continue
            if self.holds(status):
                raise OutputError(
                    f"{path}: is also an input, and inputs are never changed: say another name"
                )


def _identities_of(names: Iterable[str]) -> NDArray[np.int64]:
    look = lru_cache(_KEPT)(_look)
    found = array("q")
    for name in names:
        found.extend(look(name))
    identities = np.array(found, np.int64)
    identities.sort()
    return identities


def _look(name: str) -> tuple[int, ...]:
    """The file of a name, and the link where the name is one: removing it would lose the input."""
    found = []
    for look in (os.stat, os.lstat):
        try:
            status = look(name)
        except (OSError, ValueError):
            continue
        found.append(hash((status.st_dev, status.st_ino)))
    return tuple(dict.fromkeys(found))
