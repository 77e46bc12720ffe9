"""Size and time of change of the files of a pair: whether they are the ones of an earlier run."""

from __future__ import annotations

import os

from fusecli.pairs.pair import Pair

FileStamp = tuple[int, int] | None


class FileStamps:
    """Size and time of change of files, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, FileStamp] = {}

    def of(self, pair: Pair) -> list[FileStamp]:
        """Of the files of a pair: image, text and masks; None for one that is not there."""
        return [self._look(name) for name in pair.files]

    def _look(self, name: str) -> FileStamp:
        if name in self._known:
            return self._known[name]
        try:
            status = os.stat(name)
            stamp: FileStamp = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            stamp = None
        self._known[name] = stamp
        return stamp
