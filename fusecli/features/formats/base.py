"""What every file format offers: how its files are opened and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from io import BufferedReader
from typing import IO, Any, Protocol

from numpy.typing import NDArray

from fusecli.errors import shortened
from fusecli.features.literals import OutDtype
from fusecli.features.tensor import StoredTensor
from fusecli.records import record

Buffers = list[bytes | memoryview]
Encode = Callable[[Mapping[str, NDArray[Any]]], Buffers]


@record
class FileContents:
    """What the header of a file says.

    Attributes:
        tensors: by key; a file of one nameless tensor has the key "".
        metadata: what the file says about itself, in formats that can.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)


@record
class OutputContents:
    """What a file that is written will hold.

    Attributes:
        shapes: of its tensors, by name.
        dtype: type of all numbers: "float32", "float16" or "bfloat16".
        metadata: plain data for the file's own metadata; left out by formats without one.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: OutDtype
    metadata: dict[str, Any]


class TensorSink(Protocol):
    """Takes the numbers of a file's tensors, chunk by chunk.

    Making one does nothing yet, so that a signal at any moment finds it where `discard` can
    be called. Each method raises OSError where the disk does not take it.
    """

    def begin(self) -> None:
        """Write what stands before the numbers."""

    def write(self, index: int, data: memoryview) -> None:
        """Append numbers to the tensor with this place in `OutputContents.shapes`."""

    def finish(self) -> None:
        """Complete the file; every tensor has all its numbers."""

    def discard(self) -> None:
        """Let go of everything that is held besides the file; never raises."""


class Format(Protocol):
    """A file format that is read. `table.py` lists the endings of its files' names.

    Attributes:
        called: what its files are, in words, such as "a .npy file"; for errors that say that
            a file is none.
    """

    @property
    def called(self) -> str: ...

    def recognises(self, handle: BufferedReader) -> bool:
        """Whether a file is of this format by its content, whatever its name says.

        Args:
            handle: the open file, at its start.
        """

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        """Read the header of a file; the numbers are read when they are asked for.

        Args:
            handle: the open file, at its start. It stays open for as long as the tensors
                are used, and is closed by the caller.
            file: its name for messages.

        Raises:
            FeatureFileError: another format, damaged, or without tensors.
        """


class WritableFormat(Format, Protocol):
    """A file format that results are written in.

    Attributes:
        has_keys: its files hold several tensors, each under a name.
        dtypes: types of numbers it can hold.
    """

    @property
    def has_keys(self) -> bool: ...

    @property
    def dtypes(self) -> tuple[OutDtype, ...]: ...

    def sink(self, file: IO[bytes], folder: str, contents: OutputContents) -> TensorSink:
        """What writes a file chunk by chunk.

        Args:
            file: empty, open for reading and writing.
            folder: where further temporary files may be made.
            contents: what it will hold.
        """

    def encoder(self, dtype: OutDtype, metadata: dict[str, Any]) -> Encode:
        """A function that makes whole files of small results.

        Args:
            dtype, metadata: as in `OutputContents`.

        Returns:
            A function from tensors by name, contiguous and in the type as it is stored
            (bfloat16 as its bits), to the file's bytes in pieces. Threads may share it.
        """


def one_line(error: BaseException) -> str:
    """The first line of another library's error message, short."""
    lines = str(error).strip().splitlines()
    unnamed = "it ends too early" if isinstance(error, EOFError) else "it cannot be read"
    return shortened(lines[0], 160) if lines else unnamed


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    flat: memoryview = array.reshape(-1).view("u1").data
    return flat
