"""What each way to fuse gives, and what it costs, for the shapes at hand. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fusecli.errors import UsageError
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.method import Method, Way
from fusecli.fusion.methods import all_methods
from fusecli.fusion.options import ModuleOptions


@dataclass(frozen=True)
class Shapes:
    """Sizes of one pair and of the module; the letters are in `features/axes.py`."""

    T: int
    P: int
    text_dim: int
    image_dim: int
    dim: int | None = None
    heads: int | None = None
    layers: int | None = None
    ffn_dim: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class MethodRow:
    """One way to fuse.

    Attributes:
        options: that choose it on the command line.
        width: of a fused vector.
        parameters: weights to train; 0 if it needs none.
        patches: "mean" of all image tokens, "weighed" for each text token and head, or "one".
        text: what of the text is in the result: "unchanged" (beside the image, or with it
            added), "projected", "times alpha", or "not kept" (it is only the query).
        multiply_adds: of one pair in a long stack, in the order of products that fusecli takes.
        problem: why these shapes do not allow it; the sizes are 0 then.
    """

    options: str
    width: int
    parameters: int
    patches: str
    text: str
    multiply_adds: int
    problem: str | None = None


def compare_methods(shapes: Shapes) -> list[MethodRow]:
    """One row for each way to fuse pairs of these shapes, ways that take the mean first.

    Args:
        shapes: T, P and widths of at least 1.
    """
    ways = [(method, way) for method in all_methods() for way in method.ways]
    ways.sort(key=lambda entry: entry[1].patches == "weighed")
    return list(_rows(shapes, ways))


def _rows(shapes: Shapes, ways: list[tuple[Method, Way]]) -> Iterator[MethodRow]:
    for method, way in ways:
        if not method.offers(way, shapes.image_dim, shapes.text_dim):
            continue
        options = " ".join([f"--method {method.name}", *(f"--{name}" for name in way.switches)])
        patches = way.patches if shapes.P > 1 else "one"
        try:
            config = _config(shapes, method, way)
        except UsageError as error:
            yield MethodRow(options, 0, 0, patches, way.text, 0, str(error))
            continue
        if way.projected:
            options += f" --dim {config.embed_dim}"
        cost = multiply_adds(config, shapes.T, shapes.P)
        parameters = config.parameter_count()
        yield MethodRow(options, config.embed_dim, parameters, patches, way.text, cost)


def _config(shapes: Shapes, method: Method, way: Way) -> FusionConfig:
    dim = shapes.dim
    if way.projected is not None:
        dim = (dim or shapes.text_dim) if way.projected else None
    sizes = {"num_heads": "heads", "layers": "layers", "ffn_dim": "ffn_dim", "rank": "rank"}
    options: dict[str, Any] = dict.fromkeys(way.switches, True)
    for field, name in sizes.items():
        if field in method.fields:
            options[name] = getattr(shapes, name)
    given = ModuleOptions(method=method.name, dim=dim, **options)
    return given.config(shapes.image_dim, shapes.text_dim)


def multiply_adds(config: FusionConfig, T: int, P: int) -> int:
    """Multiply-adds of one pair, without what is done once for a long stack.

    Args:
        config: of any method; the text is the query side.
        T, P: tokens of text and image.
    """
    return config.how.multiply_adds(config, T, P)
