"""Results on disk: whole or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk, and
renamed. Formats are told by the ending. Rows arrive in chunks, so that a stack larger than
memory can be written.
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import OutputError
from fusecli.features.atomic import StagedFile, StagedStdout
from fusecli.features.dtypes import from_float32, storage_type
from fusecli.features.formats.base import OutputContents, TensorSink, bytes_of
from fusecli.features.formats.npy import FORMAT as NPY
from fusecli.features.formats.table import writable_format_of
from fusecli.features.literals import OUT_DTYPES as OUT_DTYPES

FUSED_KEY = "fused"
ATTENTION_KEY = "attention"


class FeatureWriter:
    """Writes tensors side by side, chunk by chunk, in the format its file's ending asks for.

    Args:
        path: where it goes; "-" is .npy on stdout.
        contents: names and shapes of the tensors (.npy holds one, whatever its name), their
            type, and the file's metadata.
        replace: a file of this name is replaced, also one that appears meanwhile.
    """

    def __init__(self, path: str, contents: OutputContents, replace: bool = False) -> None:
        self._path, self._contents = path, contents
        self.staged = StagedStdout() if path == "-" else StagedFile(path, replace)
        # A name without an ending is one of /dev/stdout's kind, which takes what stdout takes.
        self._format = writable_format_of(path) or NPY
        self._sink: TensorSink | None = None

    def begin(self) -> FeatureWriter:
        """Make the file and write the format's header.

        Raises:
            OutputError: the folder or the disk does not allow it.
        """
        self.staged.begin()
        folder = os.path.dirname(os.path.realpath(self._path))
        try:
            self._sink = self._format.sink(self.staged.handle, folder, self._contents)
            self._sink.begin()
        except OSError as error:
            raise self.staged.failed(error) from None
        return self

    @property
    def key(self) -> str | None:
        """Name of the (first) tensor in the file; .npy has none."""
        return next(iter(self._contents.shapes)) if self._format.has_keys else None

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, without the file's header."""
        numbers = sum(math.prod(shape) for shape in self._contents.shapes.values())
        return numbers * storage_type(self._contents.dtype).itemsize

    def append(self, rows: NDArray[np.float32], *further: NDArray[np.float32]) -> None:
        """Write the next rows, of further tensors too, rounded to the output type.

        Raises:
            OutputError: the disk is full, or a number does not fit the type.
        """
        assert self._sink is not None, "begin comes first"
        dtype = self._contents.dtype
        for index, part in enumerate((rows, *further)):
            stored = np.ascontiguousarray(from_float32(part, dtype))
            narrow = dtype == "float16"
            if narrow and not np.isfinite(stored).all() and np.isfinite(part).all():
                raise OutputError(
                    f"{self._path}: fused values reach {np.abs(part).max():.3g} and float16 ends "
                    "at 65504: say --out-dtype float32"
                )
            try:
                self._sink.write(index, bytes_of(stored))
            except OSError as error:
                raise self.staged.failed(error) from None

    def finish(self) -> None:
        """Complete the file under its temporary name.

        Raises:
            OutputError: the disk is full, or failed.
        """
        assert self._sink is not None, "begin comes first"
        try:
            self._sink.finish()
        except OSError as error:
            raise self.staged.failed(error) from None
        self.staged.flush()

    def publish(self) -> None:
        """Give the file its name, or copy it to stdout.

        Raises:
            OutputError: the folder, the disk or the reader of stdout does not take it.
        """
        self.staged.publish()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._sink is not None:
            self._sink.discard()
        self.staged.__exit__(*error)
