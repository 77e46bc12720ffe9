"""The options of a module and of its computation, and which of them exclude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fusecli.errors import ShapeError, UsageError
from fusecli.features.axes import LARGEST_SIZE
from fusecli.features.writer import OUT_DTYPES
from fusecli.fusion.backend.device import check_device_name
from fusecli.fusion.config import (
    FusionConfig,
    divisors,
    option_of,
    refuse_foreign,
    whole_numbers,
)
from fusecli.fusion.initial_weights import check_seed
from fusecli.fusion.literals import BOTH, DTYPES, ENGINES, METHODS, POOLS, SIDES, MethodName
from fusecli.fusion.methods import method_named
from fusecli.records import record

_FIELDS = {"dim": "embed_dim", "heads": "num_heads"}  # where an option has another name
_NOT_FIELDS = ("weights_prefix",)
_DEFAULT_METHOD: MethodName = "attention"


@record
class ModuleOptions:
    """What the command line says about the module; None is "not given".

    Attributes:
        weights_prefix: what stands before the names of the parameters to take, where a weights
            file holds several modules (one and its moving average, for example). The other
            attributes are those fields of `FusionConfig`.
    """

    dim: int | None = None
    heads: int | None = None
    residual: bool | None = None
    norm: bool | None = None
    null_token: bool | None = None
    method: MethodName | None = None
    gate: bool | None = None
    alpha: float | None = None
    layers: int | None = None
    ffn_dim: int | None = None
    rank: int | None = None
    weights_prefix: str | None = None

    def __post_init__(self) -> None:
        for name in whole_numbers():
            # They are sizes. In a config 0 stands for a size that was not given.
            if self.given.get(name, 1) < 1:
                raise UsageError(f"{option_of(name)} must be at least 1, found {self.given[name]}")

    @property
    def given(self) -> dict[str, Any]:
        """What is given, under the names of `FusionConfig`'s fields."""
        return {
            _FIELDS.get(name, name): value
            for name, value in asdict(self).items()
            if value is not None and name not in _NOT_FIELDS
        }

    def config(self, image_dim: int, text_dim: int) -> FusionConfig:
        """The fusion that the options describe by themselves, for features of these widths.

        Concat and sum project where `dim` is given; a sum also where the widths differ.

        Args:
            image_dim: Di.
            text_dim: Dt; the width D where `dim` is not given.

        Raises:
            UsageError: an option is out of range, of another method, or contradicts another.
        """
        method = method_named(self.method or _DEFAULT_METHOD)
        values = method.complete(self.given, image_dim, text_dim)
        config = FusionConfig(image_dim=image_dim, text_dim=text_dim, **values)
        refuse_foreign(config.method, self.given)
        return config


def initial_config(
    options: ModuleOptions,
    seed: int | None,
    image_dim: int,
    text_dim: int,
    where: str,
    remedy: str = "",
) -> tuple[FusionConfig, int | None]:
    """The fusion without a weights file, and the seed of its weights, None where it has none.

    Args:
        options: what is given of the module.
        seed: that was given.
        image_dim, text_dim: Di and Dt.
        where: the text, for errors.
        remedy: what else could be wrong, for errors.

    Raises:
        ShapeError: the default number of heads does not divide the text's width.
        UsageError: the options do not describe a fusion.
    """
    has_heads = "num_heads" in method_named(options.method or _DEFAULT_METHOD).fields
    assumed = has_heads and options.dim is None and options.heads is None
    if assumed and text_dim % 8 and 0 < text_dim <= LARGEST_SIZE:
        possible = ", ".join(map(str, divisors(text_dim)))
        raise ShapeError(
            f"{where} is {text_dim} wide, and 8 heads do not divide that: use --heads with one of "
            f"{possible}, or --dim{remedy}"
        )
    config = options.config(image_dim, text_dim)
    if config.has_weights:
        return config, check_seed(seed or 0)
    if seed is not None:
        raise UsageError(f"--seed {seed}: --method {config.method} has no weights without --dim")
    return config, None


def check_choice(option: str, value: str | None, allowed: Sequence[str]) -> None:
    """Raises:
    UsageError: a value was given and is not one of those allowed.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value}: expected {', '.join(allowed)}")


def check_method(method: str | None) -> None:
    """Raises:
    UsageError: there is no such method.
    """
    check_choice("--method", method, METHODS)


def check_computing(device: str, dtype: str, engine: str) -> None:
    """Raises:
    UsageError: no such device, type or engine, or the engine does not run so.
    """
    check_choice("--dtype", dtype, DTYPES)
    check_choice("--engine", engine, ENGINES)
    check_device_name(device)
    if engine == "numpy" and (dtype != "float32" or device not in ("auto", "cpu")):
        raise UsageError("--engine numpy computes in float32 on the CPU only")


def check_result(out_dtype: str, direction: str, pool: str | None) -> None:
    """Raises:
    UsageError: no such type, direction or way to pool.
    """
    check_choice("--out-dtype", out_dtype, OUT_DTYPES)
    check_choice("--direction", direction, (*SIDES, BOTH))
    check_choice("--pool", pool, POOLS)


def check_origin(weights: str | None, seed: int | None) -> None:
    """Raises:
    UsageError: both a weights file and a seed are given.
    """
    if weights is not None and seed is not None:
        raise UsageError("--weights and --seed exclude each other: a seed makes initial weights")
