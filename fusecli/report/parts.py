"""The parts of the shape report.

In Python a part has attributes; it can also be read by key and be compared with a dict, under
the names that the JSON has, since callers of 0.1.0 got dicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Literal

from fusecli.features.literals import MaskStyle
from fusecli.fusion.literals import (
    Direction,
    Dtype,
    Engine,
    MethodName,
    OutDtype,
    Pool,
    ScoreOrder,
    ValueOrder,
)
from fusecli.records import Values, keyword_dataclass

Setting = bool | int | float | None


class Part(Values, Mapping[str, Any]):
    """Named values, which can also be read as a mapping.

    Attributes:
        left_out_if_none: names of fields that the JSON has only where they are not None.
    """

    left_out_if_none: ClassVar[frozenset[str]] = frozenset()

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Keys and values as the JSON has them, in its order."""
        for field in fields(self):  # type: ignore[arg-type] # every subclass is a dataclass
            value = getattr(self, field.name)
            if value is not None or field.name not in self.left_out_if_none:
                yield field.name, value

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {key: plain(value) for key, value in self.entries()}

    def keys(self) -> list[str]:  # type: ignore[override] # a list, as callers compare it with one
        """The names in the JSON, in its order."""
        return [key for key, _ in self.entries()]

    def __getitem__(self, key: str) -> Any:
        return dict(self.entries())[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Part) and type(other) is not type(self):
            return False
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment] # as a dict

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


def plain(value: Any) -> Any:
    """Parts as dicts, also those inside of lists and dicts."""
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------- report


@keyword_dataclass
class MaskPart(Part):
    """The mask of one side.

    Attributes:
        real, padding: how many tokens it marks so.
        found: which option or which name led to it.
    """

    file: str
    key: str | None
    shape: list[int]
    dtype: str
    real: int
    padding: int
    found: str


@keyword_dataclass
class AttentionMaskPart(Part):
    """A mask of which text token may attend to which image token.

    Attributes:
        style: what its numbers mean.
        style_assumed: neither an option nor a name said so.
        allowed, not_allowed: how many of its numbers mean that.
    """

    file: str
    key: str | None
    shape: list[int]
    dtype: str
    style: MaskStyle
    style_assumed: bool
    allowed: int
    not_allowed: int
    sha256: str | None


@keyword_dataclass
class InputPart(Part):
    """One feature file.

    Attributes:
        axes: one letter each.
        axes_from: what named them.
        sizes: by letter.
        sha256: of the file; None if it was not asked for.
    """

    file: str
    key: str | None
    shape: list[int]
    dtype: str
    axes: str
    axes_from: str
    sizes: dict[str, int]
    sha256: str | None
    mask: MaskPart | None


@keyword_dataclass
class PlanPart(Part):
    """The order of products.

    Attributes:
        multiply_adds, plain_multiply_adds: of this order, and of the plain module.
        image_asks: the order for the image as query side, where both sides are.
    """

    scores: ScoreOrder
    values: ValueOrder  # type: ignore[assignment] # the JSON's name
    multiply_adds: int
    plain_multiply_adds: int
    why: str
    image_asks: PlanPart | None


@keyword_dataclass
class WeightsPart(Part):
    """Where the weights came from.

    Attributes:
        seed: of initial weights; None for others.
        trained: False for initial weights; None where the file does not tell.
        origin: in words.
    """

    file: str | None
    sha256: str | None
    seed: int | None
    trained: Literal[False] | None
    origin: str


@keyword_dataclass
class ModulePart(Part):
    """The fusion.

    Attributes:
        settings: the fields of `FusionConfig` that only some methods read; None where this
            method does not. They stand beside the other keys.
        parameters: number of single weights.
    """

    method: MethodName
    embed_dim: int
    num_heads: int | None
    head_dim: int | None
    image_dim: int
    text_dim: int
    settings: Mapping[str, Setting]
    parameters: int
    weights: WeightsPart

    def entries(self) -> Iterator[tuple[str, Any]]:
        """As of every part, with the settings beside the other keys."""
        for key, value in super().entries():
            if key == "settings":
                yield from value.items()
            else:
                yield key, value


@keyword_dataclass
class AttentionPart(Part):
    """How spread the attention weights of real tokens are.

    Attributes:
        mean_entropy: in nats.
        max_entropy: mean log of the number of tokens to choose from.
        entropy_ratio: mean of the quotients of the two; 1 is uniform.
        samples: how many were looked at.
    """

    mean_entropy: float
    max_entropy: float
    entropy_ratio: float
    samples: int


@keyword_dataclass
class TensorPart(Part):
    """One tensor of the result."""

    key: str | None
    shape: list[int]
    axes: str
    bytes: int


@keyword_dataclass
class OutputPart(Part):
    """The file of the result.

    Attributes:
        key, shape, axes: of its first tensor.
        bytes: of the numbers of all tensors.
        tensors: all of them.
    """

    file: str
    key: str | None
    shape: list[int]
    axes: str
    bytes: int
    dtype: OutDtype
    direction: Direction
    pool: Pool | None
    tensors: list[TensorPart]


@keyword_dataclass
class MapsPart(Part):
    """The file of attention weights.

    Attributes:
        layer: of a transformer, from 0; other methods have no such key.
    """

    file: str
    key: str | None
    shape: list[int]
    axes: str
    dtype: Literal["float32"]
    bytes: int
    layer: int | None

    left_out_if_none = frozenset(("layer",))


@keyword_dataclass
class ProvenancePart(Part):
    """What a result can be repeated with, besides the inputs and the weights.

    Attributes:
        libraries: their versions.
        seed: of initial weights; None for others.
    """

    fusecli: str
    python: str
    machine: str
    libraries: dict[str, str]
    engine: Engine
    device: str
    dtype: Dtype
    threads: int
    seed: int | None
