"""The shape at every stage of a fusion, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusecli.features.axes import PairShapes
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods.attention.operands import uses_projected_image, uses_projected_text
from fusecli.fusion.methods.attention.plan import Plan
from fusecli.report.report import Stage

# One side: what it is called, its letter for tokens, their number, its width and that's letter.
_Side = tuple[str, str, int, int, str]
_Listed = list[tuple[str, str, tuple[int, ...], bool]]


def all_stages(
    shapes: PairShapes, config: FusionConfig, plans: Mapping[str, Plan | None]
) -> list[Stage]:
    """Those of each side that asks, one after the other.

    Args:
        shapes: of the job.
        config: the fusion.
        plans: by the side that asks.
    """
    listed: list[Stage] = []
    for side, plan in plans.items():
        own = stages(shapes, config, plan, side)
        if len(plans) > 1:
            own[-1] = replace(own[-1], name=f"fused {side}")
        listed += own[2:] if listed else own  # the features are the same
    return listed


def stages(
    shapes: PairShapes, config: FusionConfig, plan: Plan | None, direction: str = "text"
) -> list[Stage]:
    """The shape at every stage, and whether it is formed.

    Args:
        shapes: of the job.
        config: the fusion.
        plan: the order of products, of attention.
        direction: "text" or "image", the side that asks.
    """
    N, D = shapes.N, config.embed_dim
    text: _Side = ("text", "T", shapes.T, config.text_dim, "Dt")
    image: _Side = ("image", "P", shapes.P, config.image_dim, "Di")
    asking, answering = (text, image) if direction == "text" else (image, text)
    listed: _Listed = [
        (f"{name} features", f"N, {letter}, {wide}", (N, tokens, width), True)
        for name, letter, tokens, width, wide in (text, image)
    ]
    if config.method == "attention":
        assert plan is not None
        listed += _attention(N, asking, answering, config, plan, direction)
    elif config.method == "transformer":
        listed += _transformer(N, asking, answering, config)
    else:
        listed += _pooled(N, asking, answering, config)
    _, letter, tokens, _, _ = asking
    listed.append(("fused", f"N, {letter}, D", (N, tokens, D), True))
    return [Stage(*entry) for entry in listed]


def _attention(
    N: int, asking: _Side, answering: _Side, config: FusionConfig, plan: Plan, direction: str
) -> _Listed:
    D, H, d = config.embed_dim, config.num_heads, config.head_dim
    (_, Q, queries, _, _), (_, K, tokens, _, _) = asking, answering
    keys, key = (tokens + 1, f"{K}+1") if config.null_token else (tokens, K)
    weighed = plan.scores != "none"
    projected = [uses_projected_text(config, plan), uses_projected_image(plan)]
    listed: _Listed = [
        (f"projected {side[0]}", f"N, {side[1]}, D", (N, side[2], D), formed)
        for side, formed in zip((asking, answering), projected, strict=True)
    ]
    if direction == "image":
        listed.reverse()
    no_value = plan.values == "context" or plan.fold_output
    return [
        *listed,
        (
            "query, per head",
            f"N, H, {Q}, d",
            (N, H, queries, d),
            weighed and plan.scores != "key",
        ),
        ("key, per head", f"N, H, {key}, d", (N, H, keys, d), weighed and plan.scores != "query"),
        ("value, per head", f"N, H, {key}, d", (N, H, keys, d), not no_value),
        ("scores", f"N, H, {Q}, {key}", (N, H, queries, keys), weighed),
        (
            "context, per head",
            f"N, H, {Q}, d",
            (N, H, queries, d),
            weighed and plan.values != "output",
        ),
    ]


def _transformer(N: int, asking: _Side, answering: _Side, config: FusionConfig) -> _Listed:
    D, H = config.embed_dim, config.num_heads
    (_, Q, queries, _, _), (_, K, tokens, _, _) = asking, answering
    each = f", each of {config.layers} layers" if config.layers > 1 else ""
    listed: _Listed = [
        (f"projected {name}", f"N, {letter}, D", (N, count, D), True)
        for name, letter, count, _, _ in sorted((asking, answering), reverse=True)
    ]
    return [
        *listed,
        (f"self-attention scores{each}", f"N, H, {Q}, {Q}", (N, H, queries, queries), True),
        (f"cross-attention scores{each}", f"N, H, {Q}, {K}", (N, H, queries, tokens), True),
        (f"feed-forward{each}", f"N, {Q}, F", (N, queries, config.ffn_dim), True),
    ]


def _pooled(N: int, asking: _Side, answering: _Side, config: FusionConfig) -> _Listed:
    name, _, _, width, wide = answering
    listed: _Listed = [(f"mean {name}", f"N, {wide}", (N, width), True)]
    if config.method == "concat" and config.projected:
        both = asking[3] + width
        # The two halves of the projection are applied each to its own side.
        listed.append(("text and image", f"N, {asking[1]}, Dt+Di", (N, asking[2], both), False))
    if config.method == "sum" and config.projected:
        D = config.embed_dim
        listed.append((f"projected {asking[0]}", f"N, {asking[1]}, D", (N, asking[2], D), True))
        listed.append((f"projected mean {name}", "N, D", (N, D), True))
    return listed
