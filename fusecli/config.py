"""What a fusion is: the sizes and switches that, with weights, determine its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from fusecli.errors import UsageError, WeightsError, shortened

METHODS = ("attention",)
LARGEST_SIZE = 1 << 20  # wider than any encoder; keeps a hostile header from costing anything


@dataclass(frozen=True)
class FusionConfig:
    """Sizes and switches of one fusion.

    Attributes:
        embed_dim: D, the width of the module and of every fused vector.
        num_heads: H; divides D, and each head is d = D / H wide.
        image_dim: Di, the width of an image feature; 0 means D.
        text_dim: Dt, the width of a text feature; 0 means D.
        residual: add the projected text to what attention returns.
        norm: LayerNorm over the result (after the residual).
        null_token: one extra all-zero key and value (PyTorch's `add_zero_attn`).
        method: how text and image are fused.

    Raises:
        UsageError: a size is not positive, or H does not divide D.
    """

    embed_dim: int
    num_heads: int = 8
    image_dim: int = 0
    text_dim: int = 0
    residual: bool = False
    norm: bool = False
    null_token: bool = False
    method: str = "attention"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown fusion method {self.method!r}: there is {_listed(METHODS)}")
        object.__setattr__(self, "image_dim", self.image_dim or self.embed_dim)
        object.__setattr__(self, "text_dim", self.text_dim or self.embed_dim)
        for name in ("embed_dim", "num_heads", "image_dim", "text_dim"):
            if not 1 <= getattr(self, name) <= LARGEST_SIZE:
                raise UsageError(
                    f"{name} must be from 1 to {LARGEST_SIZE:,}, found {getattr(self, name)}"
                )
        if self.embed_dim % self.num_heads:
            raise UsageError(
                f"--heads {self.num_heads} does not divide --dim {self.embed_dim}: "
                f"head counts that do are {_listed(divisors(self.embed_dim))}"
            )

    @property
    def head_dim(self) -> int:
        """d = D / H."""
        return self.embed_dim // self.num_heads

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, under its `state_dict` name, in the order of creation."""
        D = self.embed_dim
        shapes: dict[str, tuple[int, ...]] = {
            "text_proj.weight": (D, self.text_dim),
            "text_proj.bias": (D,),
            "image_proj.weight": (D, self.image_dim),
            "image_proj.bias": (D,),
            "attention.in_proj_weight": (3 * D, D),
            "attention.in_proj_bias": (3 * D,),
            "attention.out_proj.weight": (D, D),
            "attention.out_proj.bias": (D,),
        }
        if self.norm:
            shapes |= {"norm.weight": (D,), "norm.bias": (D,)}
        return shapes

    def parameter_count(self) -> int:
        """Number of single weights."""
        total = 0
        for shape in self.parameter_shapes().values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total

    def to_dict(self) -> dict[str, Any]:
        """Field names and values, in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> FusionConfig:
        """Read back what `to_dict` gave; keys it does not know are refused, not ignored.

        Args:
            data: field names and values.
            where: the file it comes from, for the error.

        Raises:
            WeightsError: an unknown key, a missing size, or a value of the wrong type.
        """
        kinds = {field.name: type(getattr(_EXAMPLE, field.name)) for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name not in kinds:
                raise WeightsError(
                    f"{where}: its fusecli metadata has {shortened(name)!r}, "
                    "which this version does not know"
                )
            if type(value) is not kinds[name]:
                raise WeightsError(
                    f"{where}: its fusecli metadata says {name} = {shortened(repr(value))}, "
                    f"expected {kinds[name].__name__}"
                )
            values[name] = value
        for name in ("embed_dim", "num_heads"):
            if name not in values:
                raise WeightsError(f"{where}: its fusecli metadata has no {name}")
        try:
            return cls(**values)
        except UsageError as error:
            raise WeightsError(f"{where}: its fusecli metadata is impossible: {error}") from None


_EXAMPLE = FusionConfig(embed_dim=8)


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
