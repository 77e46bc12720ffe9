"""The shape at every stage of attention, for the report."""

from __future__ import annotations

from collections.abc import Iterator

from fusecli.fusion.base import Plan
from fusecli.fusion.method import Stage, TokenSide
from fusecli.fusion.methods.attention.operands import uses_projected_image, uses_projected_text
from fusecli.fusion.settings import FusionSettings


def attention_stages(
    N: int, query: TokenSide, context: TokenSide, config: FusionSettings, plan: Plan
) -> Iterator[Stage]:
    """The stages between the features and the fused rows.

    Args:
        N: pairs.
        query, context: the two sides.
        config: the fusion.
        plan: the order of products, which decides what is formed.
    """
    D, H, d = config.embed_dim, config.num_heads, config.head_dim
    Q, queries, K, tokens = query.letter, query.tokens, context.letter, context.tokens
    keys, key = (tokens + 1, f"{K}+1") if config.null_token else (tokens, K)
    weighed = plan.scores != "none"
    projected = [
        Stage(f"projected {side.name}", f"N, {side.letter}, D", (N, side.tokens, D), formed)
        for side, formed in (
            (query, uses_projected_text(config, plan)),
            (context, uses_projected_image(plan)),
        )
    ]
    yield from sorted(projected, key=lambda stage: stage.name, reverse=True)  # the text first
    forms_query = weighed and plan.scores != "key"
    forms_key = weighed and plan.scores != "query"
    forms_value = plan.values != "context" and not plan.fold_output
    forms_context = weighed and plan.values != "output"
    yield Stage("query, per head", f"N, H, {Q}, d", (N, H, queries, d), forms_query)
    yield Stage("key, per head", f"N, H, {key}, d", (N, H, keys, d), forms_key)
    yield Stage("value, per head", f"N, H, {key}, d", (N, H, keys, d), forms_value)
    yield Stage("scores", f"N, H, {Q}, {key}", (N, H, queries, keys), weighed)
    yield Stage("context, per head", f"N, H, {Q}, d", (N, H, queries, d), forms_context)
