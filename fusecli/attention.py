"""The fusion arithmetic for inference, once for numpy and torch, in any order of products.

Three facts save work beyond the order (all exact in real arithmetic, letters in `shapes.py`):

- Two linear layers in a row are one. It is formed in float64 and rounded once.
- A bias on the keys adds the same to all scores of a query, and softmax does not see it.
  Attention weights sum to 1, so the bias on the values passes through and joins the output
  bias. Not so with a null token: its score is 0 and it takes a share of the weights.
- With one image token softmax is 1: the fused row is `Wo (V y + bv) + bo` for every text token.

y is the image `[n, P, Di]`, x the text `[n, T, Dt]`, n the samples of a chunk; matrices are
`[out, in]` as in torch, and per head `[H, d, in]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.arrays import Array, NumpyArrays, TorchArrays
from fusecli.config import FusionConfig
from fusecli.plan import Plan

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


def attend(
    operands: Operands,
    image: Array,
    text: Array,
    arrays: Arrays,
    image_mask: Array | None = None,
    weights_out: list[Array] | None = None,
) -> Array:
    """Fuse a chunk of samples, none of which sees another.

    Args:
        operands: from `prepare`.
        image: y `[n, P, Di]`; masked tokens hold zeros.
        text: x `[n, T, Dt]`.
        arrays: the same as for `prepare`.
        image_mask: bool `[n, P]`, true for real tokens, or None if all are. A sample without
            one has a context of zero.
        weights_out: a list that receives the attention weights `[n, H, T, P]`. Asking does
            not change the result.

    Returns:
        `[n, T, D]`, in workspace that the next call overwrites.
    """
    m, config, plan = operands.matrices, operands.config, operands.plan
    n, T = text.shape[0], text.shape[1]
    x, y = text.reshape(n * T, -1), image.reshape(-1, image.shape[2])
    t: Any = arrays.linear("text", x, m["text"], m["text_bias"]) if "text" in m else None
    i = arrays.linear("image", y, m["image"], None) if "image" in m else None
    real = empty = None
    if image_mask is not None:
        empty = ~image_mask.any(1)
        # Softmax over nothing is undefined; such a sample is given its result below.
        real = image_mask | empty[:, None]  # [n, P]
    v = None
    if plan.values != "context":
        v = arrays.linear("value", y if plan.fold_value else i, m["value"], m["value_bias"])
    if plan.scores == "none":
        row: Any = v if plan.fold_output else arrays.linear("row", v, m["out"], None)
        row += m["out_bias"]
        fused = arrays.repeated("fused", row, T)  # [n, T, D]
        if weights_out is not None:
            weights_out.append(arrays.ones(n, config.num_heads, T, 1))
    else:
        q = k = None
        if plan.scores != "key":
            q = arrays.linear("query", x if plan.fold_query else t, m["query"], m["query_bias"])
        if plan.scores != "query":
            k = arrays.linear("key", y if plan.fold_key else i, m["key"], m["key_bias"])
        fused = _weighed(operands, image, text, (q, k, v), real, arrays, weights_out)
    if empty is not None:
        fused[empty] = m["empty"]
    if config.residual:
        fused += t.reshape(fused.shape)
    if config.norm:
        fused = arrays.layer_norm(fused, m["norm"], m["norm_bias"])
    return fused


def _weighed(
    operands: Operands,
    image: Array,
    text: Array,
    rows: tuple[Array, Array, Array],  # each None where not formed
    real: Array | None,
    arrays: Arrays,
    weights_out: list[Array] | None,
) -> Array:
    """From q `[n T, D]`, k and v `[n P, D]` to `[n, T, D]`."""
    m, plan = operands.matrices, operands.plan
    n, T, P, D = text.shape[0], text.shape[1], image.shape[1], operands.config.embed_dim
    H, d = operands.config.num_heads, operands.config.head_dim
    q, k, v = rows
    in_one = plan.scores == plan.values == "projected" and arrays.one_kernel
    in_one = in_one and not operands.config.null_token
    a, layout = None, "HTP"
    if not in_one or weights_out is not None:
        a, layout = _weights(operands, image, text, q, k, real, arrays)
    if weights_out is not None:
        weights_out.append(arrays.permuted(a, _order(layout, "HTP")))
    if in_one:
        heads = q.reshape(n, T, H, d), k.reshape(n, P, H, d), v.reshape(n, P, H, d)
        context = arrays.attention(*heads, real)  # [n, T, H, d]
    elif plan.values == "projected":
        a = _laid_out(a, layout, "HTP", arrays)
        context = arrays.heads_to_context(a, v.reshape(n, P, H, d))  # [n, T, H, d]
    elif plan.values == "context":
        a = _laid_out(a, layout, "THP", arrays)
        mixed = arrays.batched("mixed", a.reshape(n, T * H, P), image)  # [n, T H, Di]
        context = arrays.per_head("context", mixed.reshape(n * T, H, -1), m["value_heads"])
        if m["value_bias"] is not None:  # the real weights do not sum to 1
            context += a.sum(-1).reshape(n * T, H, 1) * m["value_bias"]
    else:
        a = _laid_out(a, layout, "TPH", arrays)
        z = arrays.per_head("into value", v.reshape(n * P, H, d), m["out_heads"])  # [n P, H, D]
        fused = arrays.batched("fused", a.reshape(n, T, P * H), z.reshape(n, P * H, D))
        fused += m["out_bias"]
        return fused
    out = arrays.linear("fused", context.reshape(n * T, D), m["out"], m["out_bias"])
    return out.reshape(n, T, D)


def _weights(
    operands: Operands,
    image: Array,
    text: Array,
    q: Array,
    k: Array,
    real: Array | None,
    arrays: Arrays,
) -> tuple[Array, str]:
    """Attention weights after softmax over P, and the order of their axes behind n."""
    m, plan = operands.matrices, operands.plan
    n, T, P = text.shape[0], text.shape[1], image.shape[1]
    H, d = operands.config.num_heads, operands.config.head_dim
    if plan.scores == "projected":
        layout = "HTP"
        scores = arrays.heads_to_scores(q.reshape(n, T, H, d), k.reshape(n, P, H, d))
    elif plan.scores == "query":
        layout = "THP"
        q = q.reshape(n * T, H, d)
        u = arrays.per_head("into query", q, m["key_heads"])  # [n T, H, Di]
        scores = arrays.batched("scores", u.reshape(n, T * H, -1), image.swapaxes(1, 2))
        scores = scores.reshape(n, T, H, P)
        if m["key_bias"] is not None:
            scores += arrays.per_head("bias", q, m["key_bias"]).reshape(n, T, H, 1)
    else:
        layout = "TPH"
        k = k.reshape(n * P, H, d)
        w = arrays.per_head("into key", k, m["query_heads"]).reshape(n, P * H, -1)  # [n, P H, Dt]
        scores = arrays.batched("scores", text, w.swapaxes(1, 2)).reshape(n, T, P, H)
        # The bias of the query survives as one number a head and image token.
        scores += arrays.per_head("bias", k, m["query_bias"]).reshape(n, 1, P, H)
    axis = 2 if layout == "TPH" else 3
    if real is not None:
        real = real.reshape((n, 1, P, 1) if layout == "TPH" else (n, 1, 1, P))
    return arrays.softmax(scores, axis, real, operands.config.null_token), layout


def _laid_out(a: Array, layout: str, wanted: str, arrays: Arrays) -> Array:
    if layout == wanted:
        return a
    return arrays.rearranged("weights", a, _order(layout, wanted))


def _order(layout: str, wanted: str) -> tuple[int, ...]:
    return (0, *(1 + layout.index(letter) for letter in wanted))


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
