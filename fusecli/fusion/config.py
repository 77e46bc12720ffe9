"""The configuration of a fusion: what, together with weights, determines its result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from fusecli.errors import UsageError, WeightsError, shortened
from fusecli.features.axes import LARGEST_SIZE
from fusecli.fusion.layers import Layer
from fusecli.fusion.literals import METHODS, SIDES, MethodName, Side
from fusecli.fusion.method import Method
from fusecli.fusion.methods import method_named, methods_with
from fusecli.fusion.settings import FusionSettings
from fusecli.records import record

DIRECTIONS = SIDES
_WIDTHS = ("embed_dim", "image_dim", "text_dim", "method")
# The largest values of whole numbers that are not as large as a width can be.
_LARGEST = {"layers": 256, "ffn_dim": 4 * LARGEST_SIZE}
_OPTIONS = {"embed_dim": "--dim", "num_heads": "--heads", "projected": "a projection"}


@record
class FusionConfig(FusionSettings):
    """Sizes and switches of one fusion, checked. The fields are those of `FusionSettings`.

    Raises:
        UsageError: a size is not possible, H does not divide D, or a switch is of another method
            or contradicts another.
    """

    def __post_init__(self) -> None:
        method = method_named(self.method)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}
        refuse_foreign(self.method, changed)
        self._fill({"image_dim": self.embed_dim, "text_dim": self.embed_dim})
        self._fill(method.defaults(self))
        sizes = dict.fromkeys(("embed_dim", "num_heads", "image_dim", "text_dim"), LARGEST_SIZE)
        for name in whole_numbers():
            if name in method.fields and name != "context_dim":  # which may be 0: see below
                sizes[name] = _LARGEST.get(name, LARGEST_SIZE)
        for name, largest in sizes.items():
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise UsageError(
                    f"{option_of(name)} must be from 1 to {largest:,}, found {shown(value)}"
                )
        if self.has_heads and self.embed_dim % self.num_heads:
            raise UsageError(
                f"--heads {self.num_heads} does not divide the width D, {self.embed_dim}: "
                f"head counts that do are {_listed(divisors(self.embed_dim))}"
            )
        if not 0 <= self.context_dim <= LARGEST_SIZE:
            raise UsageError(
                f"context_dim must be from 0 to {LARGEST_SIZE:,}, found {shown(self.context_dim)}"
            )
        method.check(self)

    def _fill(self, values: Mapping[str, int]) -> None:
        """Replace sizes that are 0, which stands for a size that follows from others."""
        for name, value in values.items():
            object.__setattr__(self, name, getattr(self, name) or value)

    @classmethod
    def of(cls, settings: FusionSettings) -> FusionConfig:
        """The same settings, checked."""
        return settings if isinstance(settings, cls) else cls(**vars(settings))

    @property
    def how(self) -> Method:
        """The method, with its arithmetic."""
        return method_named(self.method)

    def check_direction(self, direction: Side, weights: str | None = None) -> None:
        """Whether one side's tokens can be the query side.

        Args:
            direction: which side.
            weights: the file that fixes the widths, for the error; None where options do.

        Raises:
            UsageError: no such direction, or the gate would add that side to a result of
                another width.
        """
        self.check_directions([direction], weights)

    def check_directions(self, sides: Sequence[Side], weights: str | None = None) -> None:
        """Whether tokens of all these sides can be the query side, one after the other.

        Args:
            sides: "text", "image" or both.
            weights: as for `check_direction`.

        Raises:
            UsageError: as `check_direction`, or a gate would need two widths at once.
        """
        known: list[Side] = [side for side in SIDES if side in sides]
        for direction in sides:
            if direction not in SIDES:
                raise UsageError(f"direction {direction!r}: expected {_listed(SIDES)}")
        self.how.check_sides(self, known, weights)

    @property
    def has_heads(self) -> bool:
        """Whether the method has attention heads, so that H has a meaning."""
        return "num_heads" in self.how.fields

    @property
    def has_weights(self) -> bool:
        """Whether there is anything to train or to load."""
        return bool(self.parameter_shapes())

    def layers_of_method(self) -> list[Layer]:
        """The layers, in the order of creation."""
        return self.how.layers(self)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, under its `state_dict` name, in the order of creation."""
        layers = self.layers_of_method()
        return {name: shape for layer in layers for name, shape in layer.shapes.items()}

    def parameter_count(self) -> int:
        """Number of single weights."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """Names and values of the fields that its method reads, in the order of the fields."""
        own = (*_WIDTHS, *self.how.fields)
        fields = {name: value for name, value in asdict(self).items() if name in own}
        if not self.context_dim:  # the usual case, which files of 0.1.0 have no field for
            fields.pop("context_dim", None)
        return fields

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
                    f"{where}: its fusecli metadata says {name} = {shown(value)}, "
                    f"expected {kinds[name].__name__}"
                )
            values[name] = value
        method = values.get("method", _EXAMPLE.method)
        needed = method_named(method).required if method in METHODS else ()
        for name in ("embed_dim", *needed):
            if name not in values:
                raise WeightsError(f"{where}: its fusecli metadata has no {name}")
        try:
            return cls(**values)
        except UsageError as error:
            raise WeightsError(f"{where}: its fusecli metadata is impossible: {error}") from None


def whole_numbers() -> list[str]:
    """The fields that are whole numbers: all of them are sizes."""
    return [field.name for field in fields(FusionSettings) if field.type == "int"]


def option_of(name: str) -> str:
    """The option that sets a field of `FusionConfig`."""
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def refuse_foreign(method: MethodName, given: Mapping[str, object]) -> None:
    """Raises:
    UsageError: a field of other methods is given; a switch that is off changes nothing.
    """
    own = (*_WIDTHS, *method_named(method).fields)
    for name, value in given.items():
        if name not in own and value is not False:
            raise UsageError(
                f"{option_of(name)} belongs to --method {' or '.join(methods_with(name))}, "
                f"not to {method}"
            )


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def shown(value: object) -> str:
    """A value from a file, for a message; whatever it is, it is printed short and quickly."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return shortened(repr(value))


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)


_EXAMPLE = FusionSettings(embed_dim=8)
