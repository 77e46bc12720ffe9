"""What a run hands over to be stored: the fused rows of one pair, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fusecli.batch.store.journal import Shapes
from fusecli.pairs.open import Pair
from fusecli.pairs.stamps import FileStamp
from fusecli.report.report import Diagnosis, Note


@dataclass(slots=True, eq=False)
class Result:
    """The outcome of one pair.

    Attributes:
        pair: which.
        stamps: size and time of change of its files, as they were read.
        tensors: the fused rows and what goes with them by name, as they are stored and in the
            shapes the axes want; None where it failed.
        error: why it failed.
        diagnoses: what may be wrong with the result.
        content: tells the features that were read; 0 where they were not.
        notes: what was assumed, or used without being asked for.
        written: tells the numbers of the tensors; 0 where there are none.
    """

    pair: Pair
    stamps: list[FileStamp]
    tensors: dict[str, NDArray[Any]] | None = None
    error: str | None = None
    diagnoses: list[Diagnosis] = field(default_factory=list)
    content: int = 0
    notes: list[Note] = field(default_factory=list)
    written: int = 0

    @property
    def shapes(self) -> Shapes:
        """Of the tensors."""
        return {name: tensor.shape for name, tensor in (self.tensors or {}).items()}

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in (self.tensors or {}).values())
