"""What each way to fuse gives, and what it costs, for the shapes at hand. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusecli.errors import UsageError
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods.attention.plan import Sizes, choose_plan
from fusecli.fusion.weights import ModuleOptions


@dataclass(frozen=True)
class Shapes:
    """Sizes of one pair and of the module; the letters are in `shapes.py`."""

    T: int
    P: int
    text_dim: int
    image_dim: int
    dim: int | None = None
    heads: int | None = None
    layers: int | None = None
    ffn_dim: int | None = None


@dataclass(frozen=True)
class MethodRow:
    """One way to fuse.

    Attributes:
        options: what it is called on the command line.
        width: of a fused vector.
        parameters: weights to train; 0 if it needs none.
        patches: "mean" of all image tokens, "weighed" for each text token and head, or "one".
        text: what of the text is in the result: "unchanged" (beside the image, or with it
            added), "projected", "times alpha", or "not kept" (it only asks).
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


# ModuleOptions, what becomes of the image tokens, what of the text is in the result.
_WAYS: tuple[tuple[dict[str, object], str, str], ...] = (
    ({"method": "concat", "dim": None}, "mean", "unchanged"),
    ({"method": "concat"}, "mean", "projected"),
    ({"method": "sum", "dim": None}, "mean", "times alpha"),
    ({"method": "sum"}, "mean", "projected"),
    ({"method": "attention"}, "weighed", "not kept"),
    ({"method": "attention", "residual": True}, "weighed", "projected"),
    ({"method": "attention", "gate": True}, "weighed", "unchanged"),
    ({"method": "transformer"}, "weighed", "projected"),
)


def compare_methods(shapes: Shapes) -> list[MethodRow]:
    """One row for each way to fuse pairs of these shapes.

    Args:
        shapes: T, P and widths of at least 1.
    """
    return list(_rows(shapes))


def _rows(s: Shapes) -> Iterator[MethodRow]:
    for said, patches, text in _WAYS:
        projects = said["method"] in ("concat", "sum") and "dim" not in said
        if said["method"] == "sum" and "dim" in said and s.text_dim != s.image_dim:
            continue  # widths that differ are always projected
        options = _options(said)
        patches = patches if s.P > 1 else "one"
        try:
            config = _config(s, said, projects)
        except UsageError as error:
            yield MethodRow(options, 0, 0, patches, text, 0, str(error))
            continue
        if projects:
            options += f" --dim {config.embed_dim}"
        cost = multiply_adds(config, s.T, s.P)
        parameters = config.parameter_count()
        yield MethodRow(options, config.embed_dim, parameters, patches, text, cost)


def _options(said: dict[str, object]) -> str:
    switches = [f"--{name}" for name, value in said.items() if value is True]
    return " ".join([f"--method {said['method']}", *switches])


def _config(s: Shapes, said: dict[str, object], projects: bool) -> FusionConfig:
    dim = s.dim or s.text_dim if projects else s.dim
    own: dict[str, object] = {"dim": dim}
    if said["method"] in ("attention", "transformer"):
        own["heads"] = s.heads
    if said["method"] == "transformer":
        own |= {"layers": s.layers, "ffn_dim": s.ffn_dim}
    return ModuleOptions(**(own | said)).config(s.image_dim, s.text_dim)  # type: ignore[arg-type]


def multiply_adds(config: FusionConfig, T: int, P: int) -> int:
    """Multiply-adds of one pair, what is done once for a long stack left out.

    Args:
        config: of any method; the text asks.
        T, P: tokens of text and image.
    """
    c = config
    D, Dt, Di = c.embed_dim, c.text_dim, c.image_dim
    if c.method == "attention":
        sizes = Sizes(1, T, P, Dt, Di, D, c.num_heads, c.null_token, c.residual)
        return choose_plan(sizes, prepared=True).multiply_adds + T * D * c.gate
    if c.method == "transformer":
        self_attention = 4 * T * D * D + 2 * T * T * D
        cross_attention = 2 * T * D * D + 2 * P * D * D + 2 * T * P * D
        layer = self_attention + cross_attention + 2 * T * D * c.ffn_dim
        return T * Dt * D + P * Di * D + c.layers * layer
    mean = P * Di
    if c.projected:
        return mean + T * Dt * D + Di * D
    return mean + (T * D if c.method == "sum" else 0)
