"""The weights as one order of products wants them: folded, scaled, per head, and placed.

Two facts save work beyond the order (exact in real arithmetic, letters in `shapes.py`):

- Two linear layers in a row are one. It is formed in float64 and rounded once.
- A bias on the keys adds the same to all scores of a query, and softmax does not see it.
  Attention weights sum to 1, so the bias on the values passes through and joins the output
  bias. Not so with a null token: its score is 0 and it takes a share of the weights.

Matrices are `[out, in]` as in torch, and per head `[H, d, in]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import Array, NumpyArrays, TorchArrays
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods.attention.plan import Plan

Arrays = NumpyArrays | TorchArrays


@dataclass(frozen=True)
class Operands:
    """The weights as one plan wants them, where they are computed with.

    Attributes:
        config, plan: what they were made for.
        matrices: by name; None where there is nothing to add or multiply.
    """

    config: FusionConfig
    plan: Plan
    matrices: dict[str, Array | None]


def needed_parameters(config: FusionConfig, plan: Plan) -> dict[str, slice]:
    """The parameters that a plan uses, and which of their rows.

    With one image token neither query nor key is among them.
    """
    everything = slice(None)
    names = dict.fromkeys(config.parameter_shapes(), everything)
    if plan.scores == "none":
        value = slice(2 * config.embed_dim, 3 * config.embed_dim)
        names |= {"attention.in_proj_weight": value, "attention.in_proj_bias": value}
        if not config.residual:
            del names["text_proj.weight"], names["text_proj.bias"]
    return names


def prepare(
    weights: Mapping[str, NDArray[np.float32]], config: FusionConfig, plan: Plan, arrays: Arrays
) -> Operands:
    """Fold, scale and place the weights for one plan.

    Args:
        weights: float32, under their `state_dict` names; those rows of `needed_parameters`.
        config: what they are weights of.
        plan: the order of products.
        arrays: where they are computed with.
    """
    D, H, d = config.embed_dim, config.num_heads, config.head_dim
    Wi, bi = weights["image_proj.weight"], weights["image_proj.bias"]
    W_in, b_in = weights["attention.in_proj_weight"], weights["attention.in_proj_bias"]
    Wv, bv = W_in[-D:], b_in[-D:]  # behind query and key, where those were needed
    Wo, bo = weights["attention.out_proj.weight"], weights["attention.out_proj.bias"]
    null = config.null_token
    # Biases are carried in float64 to the place where they are added once.
    v_bias = _product(Wv, bi) + bv
    made: dict[str, NDArray[Any] | None] = {
        "out_bias": bo if null else _product(Wo, v_bias) + bo,
        "empty": bo,  # an image without a real token has a context of zero
        "out": None if plan.fold_output else Wo,
    }
    V = _product(Wv, Wi) if plan.fold_value else Wv
    if plan.values == "context":
        made["value_heads"] = V.reshape(H, d, -1).swapaxes(1, 2)  # [H, Di, d]
        made["value_bias"] = v_bias.reshape(H, d) if null else None
    else:
        made["value"] = _product(Wo, V) if plan.fold_output else V
        made["value_bias"] = v_bias if null else None
        if plan.fold_output:  # what it gives is the result, so the output bias is its own
            made["value_bias"] = made["out_bias"]
    if plan.values == "output":
        made["out_heads"] = Wo.reshape(D, H, d).transpose(1, 2, 0)  # [H, d, D]
    if plan.scores != "none":
        scale = 1 / math.sqrt(d)
        Wt, bt = weights["text_proj.weight"], weights["text_proj.bias"]
        Wq, Wk, bq, bk = W_in[:D], W_in[D : 2 * D], b_in[:D], b_in[D : 2 * D]
        Q = (_product(Wq, Wt) if plan.fold_query else Wq) * scale
        K = _product(Wk, Wi) if plan.fold_key else Wk
        q_bias = (_product(Wq, bt) + bq) * scale
        k_bias = _product(Wk, bi) + bk
        if plan.scores == "key":
            made["query_heads"] = Q.reshape(H, d, -1)  # [H, d, Dt]
            made["query_bias"] = q_bias.reshape(H, d, 1)
        else:
            made["query"] = Q
            made["query_bias"] = q_bias if plan.fold_query else bq * scale
        if plan.scores == "query":
            made["key_heads"] = K.reshape(H, d, -1)  # [H, d, Di]
            made["key_bias"] = k_bias.reshape(H, d, 1) if null else None
        else:
            made["key"] = K
            made["key_bias"] = k_bias if null else None
    if uses_projected_text(config, plan):
        made["text"], made["text_bias"] = weights["text_proj.weight"], weights["text_proj.bias"]
    if uses_projected_image(plan):
        made["image"] = Wi  # its bias is in those behind it
    if config.norm:
        made["norm"], made["norm_bias"] = weights["norm.weight"], weights["norm.bias"]
    placed = {
        name: None if array is None else arrays.load(np.ascontiguousarray(array, np.float32))
        for name, array in made.items()
    }
    return Operands(config, plan, placed)


def uses_projected_text(config: FusionConfig, plan: Plan) -> bool:
    """Whether t = text_proj(x) itself is formed."""
    chained = plan.scores in ("projected", "query") and not plan.fold_query
    return chained or config.residual


def uses_projected_image(plan: Plan) -> bool:
    """Whether i = image_proj(y) itself is formed."""
    chained_key = plan.scores in ("projected", "key") and not plan.fold_key
    return chained_key or (plan.values != "context" and not plan.fold_value)


def _product(left: NDArray[np.float32], right: NDArray[np.generic]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = left.astype(np.float64) @ right.astype(np.float64)
    return product
