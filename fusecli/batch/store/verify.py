"""Results read back and compared with what the journal says was written; for `--verify`."""

from __future__ import annotations

from fusecli.batch.store.journal import Entry
from fusecli.batch.store.pack_headers import keyed_by
from fusecli.batch.store.safe_folder import SafeFolder
from fusecli.errors import FuseError
from fusecli.features.dtypes import from_float32
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.literals import OutDtype
from fusecli.pairs.fingerprints import numbers_of


class WrittenResults:
    """Compares results in an output folder; the file read last stays open.

    Args:
        folder: the output folder, or that of an unfinished pack.
        dtype: of the numbers: "float32", "float16" or "bfloat16".
    """

    def __init__(self, folder: SafeFolder, dtype: OutDtype) -> None:
        self._folder, self._dtype = folder, dtype
        self._name = ""
        self._file: FeatureFile | None = None

    def are_as_written(self, entry: Entry) -> bool:
        """Whether the tensors that a line of a journal names hold the numbers that were written.

        False too where the line does not say it, as those of older versions.
        """
        if not entry.written or entry.output is None or entry.shapes is None:
            return False
        try:
            tensors = self._open(entry.output).tensors
            keys = list(entry.shapes if entry.at is None else keyed_by(entry.id, entry.shapes))
            if "" in tensors and len(tensors) == len(keys) == 1:
                keys = [""]  # .npy has no names
            numbers = [from_float32(tensors[key].read(), self._dtype) for key in keys]
        except (FuseError, OSError, KeyError):
            return False  # gone, damaged, or another file: it is made again
        return numbers_of(numbers) == entry.written

    def close(self) -> None:
        """Close the file read last."""
        if self._file is not None:
            self._file.close()
        self._name, self._file = "", None

    def _open(self, name: str) -> FeatureFile:
        if self._file is None or name != self._name:
            self.close()
            self._file = open_features(self._folder.join(name))
            self._name = name
        return self._file
