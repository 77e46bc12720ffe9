"""Results read back and compared with what the journal says was written; for `--verify`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.store.journal import Entry, Shapes
from fusecli.batch.store.pack_headers import keyed_by
from fusecli.batch.store.safe_folder import ResultFolders
from fusecli.errors import FuseError
from fusecli.features.dtypes import from_float32, storage_type
from fusecli.features.file import FeatureFile, features_of
from fusecli.features.literals import OutDtype
from fusecli.pairs.fingerprints import numbers_of

Unfinished = Callable[[Entry], bytes | None]


class WrittenResults:
    """Compares results in an output folder; the file read last stays open.

    Journals may have been changed by others: links are not followed, and nothing outside the
    folder is read.

    Args:
        folders: of the results.
        dtype: of the numbers: "float32", "float16" or "bfloat16".
        unfinished: the bytes of a result in a file that has not got its name yet; None for
            results in other files.
    """

    def __init__(self, folders: ResultFolders, dtype: OutDtype, unfinished: Unfinished) -> None:
        self._folders, self._dtype, self._unfinished = folders, dtype, unfinished
        self._name = ""
        self._file: FeatureFile | None = None

    def are_as_written(self, entry: Entry) -> bool:
        """Whether the tensors that a line of a journal names hold the numbers that were written.

        False too where the line does not say it, as those of older versions.
        """
        if not entry.written or entry.output is None or entry.shapes is None:
            return False
        try:
            data = self._unfinished(entry)
            if data is not None:
                numbers = self._in_order(data, entry.shapes)
            else:
                numbers = self._in_file(entry, entry.output, entry.shapes)
        except (FuseError, OSError, KeyError, ValueError):
            return False  # gone, damaged, or another file: it is made again
        return numbers_of(numbers) == entry.written

    def close(self) -> None:
        """Close the file read last."""
        if self._file is not None:
            self._file.close()
        self._name, self._file = "", None

    def _in_order(self, data: bytes, shapes: Shapes) -> list[NDArray[Any]]:
        """Tensors whose numbers follow each other.

        Raises:
            ValueError: there are more or fewer numbers.
        """
        dtype, at = storage_type(self._dtype), 0
        if len(data) != dtype.itemsize * sum(map(math.prod, shapes.values())):
            raise ValueError
        numbers = []
        for shape in shapes.values():
            numbers.append(np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape))
            at += numbers[-1].nbytes
        return numbers

    def _in_file(self, entry: Entry, name: str, shapes: Shapes) -> list[NDArray[Any]]:
        tensors = self._open(name).tensors
        keys = list(shapes if entry.at is None else keyed_by(entry.id, shapes))
        if "" in tensors and len(tensors) == len(keys) == 1:
            keys = [""]  # .npy has no names
        return [from_float32(tensors[key].read(), self._dtype) for key in keys]

    def _open(self, name: str) -> FeatureFile:
        if self._file is None or name != self._name:
            self.close()
            folder, last = self._folders.parent(name, make=False)
            self._file = features_of(folder.open(last, os.O_RDONLY), folder.join(last))
            self._name = name
        return self._file
