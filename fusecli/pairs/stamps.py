"""Size and time of change of the files of a pair: whether they are the ones of an earlier run.

Within a run more is compared: a file may have been rewritten with its old size and time.
"""

from __future__ import annotations

import os

from fusecli.features.changes import version_of
from fusecli.pairs.pair import Pair

FileStamp = tuple[int, int] | None
FileVersion = tuple[int, ...]


class FileStamps:
    """Size and time of change of files, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, FileStamp] = {}
        self._versions: dict[str, FileVersion] = {}

    def of(self, pair: Pair) -> list[FileStamp]:
        """Of the files of a pair: image, text and masks; None for one that is not there."""
        return [self._look(name) for name in pair.files]

    def versions(self, pair: Pair) -> list[FileVersion]:
        """What tells the files of a pair from any that had their names before, on this machine.

        A program can set the size and the time of a file back, but not the time at which the
        file system changed its inode. Copies have other such times: records hold no versions.
        """
        self.of(pair)
        return [self._versions[name] for name in pair.files]

    def _look(self, name: str) -> FileStamp:
        if name in self._known:
            return self._known[name]
        try:
            status = os.stat(name)
            stamp: FileStamp = (status.st_size, status.st_mtime_ns)
            version: FileVersion = version_of(status)
        except (OSError, ValueError):
            stamp, version = None, ()
        self._versions[name] = version
        self._known[name] = stamp
        return stamp
