"""Size and time of change of the files of a pair: whether they are the ones of an earlier run.

Within a run more is compared: a file may have been rewritten with its old size and time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fusecli.features.changes import FileVersion, version_of
from fusecli.pairs.pair import Pair

FileStamp = tuple[int, int] | None


class FileStamps:
    """Size and time of change of files, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, FileVersion | None] = {}

    def of(self, pair: Pair) -> list[FileStamp]:
        """Of the files of a pair: image, text and masks; None for one that is not there."""
        return stamps_of(self.versions(pair))

    def versions(self, pair: Pair) -> list[FileVersion | None]:
        """What tells the files of a pair from any that had their names before, on this machine.

        A program can set the size and the time of a file back, but not the time at which the
        file system changed its inode. Copies have other such times: records hold no versions.
        """
        return [self._look(name) for name in pair.files]

    def _look(self, name: str) -> FileVersion | None:
        if name not in self._known:
            try:
                self._known[name] = version_of(os.stat(name))
            except (OSError, ValueError):
                self._known[name] = None
        return self._known[name]


def stamps_of(versions: Sequence[FileVersion | None]) -> list[FileStamp]:
    """What of the versions of files is kept in records."""
    return [None if version is None else version.stamp for version in versions]
