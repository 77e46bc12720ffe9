"""The shape at every stage of a fusion, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusecli.features.pair_shapes import PairShapes
from fusecli.fusion.base import Plan
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Side
from fusecli.fusion.method import Stage, TokenSide


def all_stages(
    shapes: PairShapes, config: FusionConfig, plans: Mapping[Side, Plan | None]
) -> list[Stage]:
    """The stages of each query side, one after the other.

    Args:
        shapes: of the job.
        config: the fusion.
        plans: the order of products by query side; None for methods without a choice of it.
    """
    listed: list[Stage] = []
    for side, plan in plans.items():
        own = stages(shapes, config, plan, side)
        if len(plans) > 1:
            own[-1] = replace(own[-1], name=f"fused {side}")
        listed += own[2:] if listed else own  # the features are the same
    return listed


def stages(
    shapes: PairShapes, config: FusionConfig, plan: Plan | None, direction: Side = "text"
) -> list[Stage]:
    """The shape at every stage, and whether it is formed.

    Args:
        shapes: of the job.
        config: the fusion.
        plan: the order of products, for methods that have a choice of it.
        direction: the query side, "text" or "image".
    """
    N = shapes.N
    text = TokenSide("text", "T", shapes.T, config.text_dim, "Dt")
    image = TokenSide("image", "P", shapes.P, config.image_dim, "Di")
    query, context = (text, image) if direction == "text" else (image, text)
    features = [
        Stage(
            f"{side.name} features",
            f"N, {side.letter}, {side.width_letters}",
            (N, side.tokens, side.width),
            True,
        )
        for side in (text, image)
    ]
    between = config.how.stages(N, query, context, config, plan)
    fused = (N, query.tokens, config.embed_dim)
    return [*features, *between, Stage("fused", f"N, {query.letter}, D", fused, True)]
