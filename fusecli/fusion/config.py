"""What a fusion is: the sizes and switches that, with weights, determine its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fusecli.errors import UsageError, WeightsError, shortened

LARGEST_SIZE = 1 << 20  # wider than any encoder; keeps a hostile header from costing anything
MOST_LAYERS = 256
DIRECTIONS = ("text", "image")  # which side's tokens are fused into, and come out
# What each method reads besides the widths; anything else it refuses.
_OWN = {
    "attention": ("num_heads", "residual", "norm", "null_token", "gate"),
    "concat": ("projected",),
    "sum": ("projected", "alpha"),
    "transformer": ("num_heads", "layers", "ffn_dim"),
}
METHODS = tuple(_OWN)
_WIDTHS = ("embed_dim", "image_dim", "text_dim", "method")
_OPTIONS = {"embed_dim": "--dim", "num_heads": "--heads", "projected": "a projection"}


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
        method: how text and image are fused, one of `METHODS`.
        gate: add tanh(gate) times what attention returns to the text itself (Flamingo,
            arXiv:2204.14198, figure 4); the gate is a parameter that starts at 0.
        projected: concat and sum project to D. Without, concat is Dt + Di wide and sum takes
            sides of one width, and neither has weights.
        alpha: the text's share of a sum, from 0 to 1.
        layers: of a transformer.
        ffn_dim: inner width of a transformer's feed-forward; 0 means 4 D.

    Raises:
        UsageError: a size is not possible, H does not divide D, or a switch is of another method
            or contradicts another.
    """

    embed_dim: int
    num_heads: int = 8
    image_dim: int = 0
    text_dim: int = 0
    residual: bool = False
    norm: bool = False
    null_token: bool = False
    method: str = "attention"
    gate: bool = False
    projected: bool = False
    alpha: float = 0.5
    layers: int = 2
    ffn_dim: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown fusion method {self.method!r}: there is {_listed(METHODS)}")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}
        refuse_foreign(self.method, changed)
        object.__setattr__(self, "image_dim", self.image_dim or self.embed_dim)
        object.__setattr__(self, "text_dim", self.text_dim or self.embed_dim)
        sizes = dict.fromkeys(("embed_dim", "num_heads", "image_dim", "text_dim"), LARGEST_SIZE)
        if self.method == "transformer":
            object.__setattr__(self, "ffn_dim", self.ffn_dim or 4 * self.embed_dim)
            sizes |= {"layers": MOST_LAYERS, "ffn_dim": 4 * LARGEST_SIZE}
        for name, largest in sizes.items():
            if not 1 <= getattr(self, name) <= largest:
                raise UsageError(
                    f"{option_of(name)} must be from 1 to {largest:,}, found {getattr(self, name)}"
                )
        if self.has_heads and self.embed_dim % self.num_heads:
            raise UsageError(
                f"--heads {self.num_heads} does not divide the width D, {self.embed_dim}: "
                f"head counts that do are {_listed(divisors(self.embed_dim))}"
            )
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha must be from 0 to 1, found {self.alpha:g}")
        self._check_gate()
        self._check_unprojected()

    def _check_gate(self) -> None:
        if not self.gate:
            return
        for name, what in (("residual", "adds the projected text"), ("norm", "changes the text")):
            if getattr(self, name):
                raise UsageError(
                    f"--gate keeps the text and --{name} {what}: leave one of them out"
                )
        if self.embed_dim not in (self.text_dim, self.image_dim):
            differ = self.image_dim != self.text_dim
            other = f", or --direction image --dim {self.image_dim}" if differ else ""
            raise UsageError(
                f"--gate adds attention to the side that asks, and text {self.text_dim} and image "
                f"{self.image_dim} are not {self.embed_dim} wide: say --dim {self.text_dim}{other}"
            )

    def _check_unprojected(self) -> None:
        if self.method not in ("concat", "sum") or self.projected:
            return
        if self.method == "sum" and not self.text_dim == self.image_dim == self.embed_dim:
            raise UsageError(
                f"a sum without a projection takes sides of one width, found text {self.text_dim} "
                f"and image {self.image_dim}: say --dim, which projects both"
            )
        if self.method == "concat" and self.embed_dim != self.text_dim + self.image_dim:
            raise UsageError(
                f"text {self.text_dim} and image {self.image_dim} wide, concatenated, are "
                f"{self.text_dim + self.image_dim} wide, not {self.embed_dim} without a projection"
            )

    def check_direction(self, direction: str, weights: str | None = None) -> None:
        """Whether one side's tokens can be fused into.

        Args:
            direction: which side's.
            weights: the file that fixes the widths, for the error; None where options do.

        Raises:
            UsageError: no such direction, or the gate would add that side to a result of
                another width.
        """
        if direction not in DIRECTIONS:
            raise UsageError(f"direction {direction!r}: expected {_listed(DIRECTIONS)}")
        if self.gate and self.side_dim(direction) != self.embed_dim:
            width = self.side_dim(direction)
            other = "image" if direction == "text" else "text"
            remedy = f"say --dim {width}"
            if weights is not None:
                remedy = f"say --direction {other}, or give weights made with --dim {width}"
            raise UsageError(
                f"--gate adds attention to the {direction} itself, which is {width} wide, and "
                f"{weights or 'the module'} is {self.embed_dim}: {remedy}"
            )

    def check_directions(self, sides: Sequence[str], weights: str | None = None) -> None:
        """Whether tokens of all these sides can be fused into, one after the other.

        Args:
            sides: "text", "image" or both.
            weights: as for `check_direction`.

        Raises:
            UsageError: as `check_direction`, or a gate would need two widths at once.
        """
        if self.gate and len(sides) > 1 and self.image_dim != self.text_dim:
            # Weights fit one of them; without weights either can be had.
            fit = [s for s in sides if weights is None or self.side_dim(s) == self.embed_dim]
            raise UsageError(
                f"--gate --direction both needs image and text of one width ({self.image_dim} and "
                f"{self.text_dim}): say --direction {' or '.join(fit)}"
            )
        for side in sides:
            self.check_direction(side, weights)

    def side_dim(self, side: str) -> int:
        """Width of one side's features: Dt or Di."""
        return self.text_dim if side == "text" else self.image_dim

    @property
    def has_heads(self) -> bool:
        """Whether H means anything."""
        return "num_heads" in _OWN[self.method]

    @property
    def has_weights(self) -> bool:
        """Whether there is anything to train or to load."""
        return bool(self.parameter_shapes())

    @property
    def head_dim(self) -> int:
        """d = D / H."""
        return self.embed_dim // self.num_heads

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, under its `state_dict` name, in the order of creation."""
        D, Dt, Di = self.embed_dim, self.text_dim, self.image_dim
        if self.method == "concat":
            return _linear("projection", Dt + Di, D) if self.projected else {}
        if self.method == "sum" and not self.projected:
            return {}
        shapes = _linear("text_proj", Dt, D) | _linear("image_proj", Di, D)
        if self.method == "attention":
            shapes |= _attention("attention", D)
        if self.norm:
            shapes |= _norm("norm", D)
        if self.gate:
            shapes |= {"gate": (1,)}
        if self.method == "transformer":
            for index in range(self.layers):
                shapes |= _decoder_layer(f"decoder.layers.{index}", D, self.ffn_dim)
            shapes |= _norm("decoder.norm", D)
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
        """Names and values of the fields that its method reads, in the order of the fields."""
        own = (*_WIDTHS, *_OWN[self.method])
        return {name: value for name, value in asdict(self).items() if name in own}

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
        needed = ["embed_dim"]
        if "num_heads" in _OWN.get(values.get("method", "attention"), ()):
            needed.append("num_heads")
        for name in needed:
            if name not in values:
                raise WeightsError(f"{where}: its fusecli metadata has no {name}")
        try:
            return cls(**values)
        except UsageError as error:
            raise WeightsError(f"{where}: its fusecli metadata is impossible: {error}") from None


def option_of(name: str) -> str:
    """The option that a field of `FusionConfig` is said with."""
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def refuse_foreign(method: str, said: Mapping[str, object]) -> None:
    """Raises:
    UsageError: a field of other methods is said; a switch that is off changes nothing.
    """
    for name, value in said.items():
        if name not in (*_WIDTHS, *_OWN[method]) and value is not False:
            takers = [other for other, names in _OWN.items() if name in names]
            raise UsageError(
                f"{option_of(name)} belongs to --method {' or '.join(takers)}, not to {method}"
            )


_EXAMPLE = FusionConfig(embed_dim=8)


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _attention(name: str, D: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.in_proj_weight": (3 * D, D), f"{name}.in_proj_bias": (3 * D,)}
    return shapes | _linear(f"{name}.out_proj", D, D)


def _norm(name: str, D: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def _decoder_layer(name: str, D: int, ffn_dim: int) -> dict[str, tuple[int, ...]]:
    shapes = _attention(f"{name}.self_attn", D) | _attention(f"{name}.multihead_attn", D)
    shapes |= _linear(f"{name}.linear1", D, ffn_dim) | _linear(f"{name}.linear2", ffn_dim, D)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= _norm(f"{name}.{norm}", D)
    return shapes


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
