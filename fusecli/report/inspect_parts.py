"""What `fusecli inspect` finds, as data; its JSON has the same names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from fusecli.fusion.config import FusionConfig
from fusecli.records import keyword_dataclass
from fusecli.report.parts import Part


@keyword_dataclass
class TensorStats(Part):
    """What was counted in a tensor's rows, the vectors along its last axis.

    Attributes:
        nan, infinite: numbers.
        mean_norm, largest_norm: over rows without NaN and infinity; None if there are none.
    """

    rows: int
    nan: int
    infinite: int
    zero_rows: int
    mean_norm: float | None
    largest_norm: float | None


@keyword_dataclass
class InspectedTensor(Part):
    """One tensor of a file.

    Attributes:
        as_image, as_text: the axes it would be read as, or None.
        problem: why it would not be read, or None.
        stats: None without --stats; the key is then left out.
    """

    key: str | None
    shape: list[int]
    dtype: str
    bytes: int
    as_image: str | None
    as_text: str | None
    problem: str | None
    stats: TensorStats | None

    left_out_if_none = frozenset(("stats",))


@keyword_dataclass
class InspectedWeights(Part):
    """The module in a weights file.

    Attributes:
        config: its fields stand beside the other keys.
        num_heads: None where it is not known.
        trained: False for initial weights; None where the file does not tell.
        unused: keys of tensors that are no part of it.
    """

    config: FusionConfig
    num_heads: int | None
    trained: Literal[False] | None
    initial_seed: int | None
    unused: list[str]

    def entries(self) -> Iterator[tuple[str, Any]]:
        """As of every part, with the fields of the config beside the other keys."""
        values = dict(super().entries())
        config: FusionConfig = values.pop("config")
        shown = {**config.to_dict(), "parameters": config.parameter_count()}
        yield from {**shown, **values}.items()


@keyword_dataclass
class InspectedIds(Part):
    """The tensors of a file by the ids of pairs, for a batch.

    Attributes:
        ids: how many there are.
        pairs: how many of them have an image and a text here; None in a file of one side.
    """

    ids: int
    pairs: int | None


@keyword_dataclass
class InspectedFile(Part):
    """A feature or weights file.

    Attributes:
        weights: the fusion that it holds, or None.
        by_id: what its keys are, where they are ids of pairs, or None.
        left_out: how many tensors are not described; not in the JSON, which has all.
    """

    file: str
    bytes: int
    weights: InspectedWeights | None
    by_id: InspectedIds | None
    tensors: list[InspectedTensor]
    left_out: int

    def entries(self) -> Iterator[tuple[str, Any]]:
        return ((key, value) for key, value in super().entries() if key != "left_out")


@keyword_dataclass
class InspectedFolder(Part):
    """A folder of feature files.

    Attributes:
        folders: how many it has, itself included.
        files: how many feature files, by ending.
        other_files: how many other files; hidden ones do not count.
        bytes: of the feature files.
        first: its first feature files, in the order of their paths.
        problems: why some of the first could not be read.
    """

    folder: str
    folders: int
    files: dict[str, int]
    other_files: int
    bytes: int
    first: list[InspectedFile]
    problems: list[str]
