"""The fusion arithmetic for inference, once for numpy and torch, in any order of products.

With one image token softmax is 1: the fused row is `Wo (V y + bv) + bo` for every text token.
The other facts that save work are in `operands.py`, the choice of the order is in `plan.py`.

y is the image `[n, P, Di]`, x the text `[n, T, Dt]`, n the samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from fusecli.fusion.backend.arrays import Array
from fusecli.fusion.methods.attention.operands import Arrays, Operands


class WeightsOut(Protocol):
    """What attention weights `[., H, T, P]` are handed to, some samples after the other: a list,
    or something that passes them on, so that they need never be in memory all at once."""

    def append(self, part: Any, /) -> None: ...


def attend(
    operands: Operands,
    image: Array,
    text: Array,
    arrays: Arrays,
    image_mask: Array | None = None,
    weights_out: WeightsOut | None = None,
) -> Array:
    """Fuse a chunk of samples, none of which sees another.

    Args:
        operands: from `prepare`.
        image: y `[n, P, Di]`; masked tokens hold zeros.
        text: x `[n, T, Dt]`.
        arrays: the same as for `prepare`.
        image_mask: bool `[n, P]`, true for real tokens, or None if all are. A sample without
            one has a context of zero.
        weights_out: receives the attention weights. Asking does not change the result.

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
        row = v if plan.fold_output else arrays.linear("row", v, m["out"], m["out_bias"])
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
    weights_out: WeightsOut | None,
) -> Array:
    """From q `[n T, D]`, k and v `[n P, D]` to `[n, T, D]`."""
    m, config, plan = operands.matrices, operands.config, operands.plan
    n, T, P, D = text.shape[0], text.shape[1], image.shape[1], config.embed_dim
    H, d = config.num_heads, config.head_dim
    q, k, v = (_per_head(x, H, d) for x in rows)
    side = _score_side(operands, image, text, q, k, arrays)
    in_one = plan.scores == plan.values == "projected" and arrays.one_kernel
    # Torch's kernel turns a query that is not finite into a row of zeros, and hides it.
    if in_one and not config.null_token and arrays.all_finite(q, k):
        if weights_out is not None:
            for some in _groups(image):
                masked = None if real is None else real[some]
                weights_out.append(_weights(operands, side, some, masked, arrays))
        heads = q.reshape(n, T, H, d), k.reshape(n, P, H, d), v.reshape(n, P, H, d)
        context = arrays.attention(*heads, real)  # [n, T, H, d]
        return _out(operands, context.reshape(n * T, D), arrays).reshape(n, T, D)
    if plan.values == "projected":
        right, into = v.reshape(n, P, H, d), arrays.give("context", n, T, H, d)
    elif plan.values == "context":
        # What a query became is not needed once its scores are there: the same place serves.
        right, into = image, arrays.give("widened", n, T, H, image.shape[2])
    else:
        right = arrays.per_head("into value", v, m["out_heads"]).reshape(n, P * H, D)
        into = arrays.give("fused", n, T, D)
    total = None
    if plan.values == "context" and m["value_bias"] is not None:
        total = arrays.give("total", n * T, H, 1)
    for some in _groups(image):
        a = _weights(operands, side, some, None if real is None else real[some], arrays)
        if weights_out is not None:
            order = _order(_SCORE_AXES[plan.scores], "HTP")
            weights_out.append(arrays.copied(arrays.permuted(a, order)))
        wanted = _order(_SCORE_AXES[plan.scores], _VALUE_AXES[plan.values])
        if wanted != (0, 1, 2, 3):
            a = arrays.rearranged("weights", a, wanted)
        g = a.shape[0]
        if plan.values == "projected":
            arrays.heads_to_context(a, right[some], into[some])
        elif plan.values == "context":
            mixed = into[some].reshape(g, T * H, -1)
            arrays.batched(a.reshape(g, T * H, P), right[some], mixed)
            if total is not None:
                total.reshape(n, T, H)[some] = a.sum(-1)
        else:
            arrays.batched(a.reshape(g, T, P * H), right[some], into[some])
    if plan.values == "output":
        into += m["out_bias"]
        return into
    if plan.values == "context":
        into = arrays.per_head("context", into.reshape(n * T, H, -1), m["value_heads"])
        if total is not None:  # the real weights do not sum to 1
            into += total * m["value_bias"]
    return _out(operands, into.reshape(n * T, D), arrays).reshape(n, T, D)


def _per_head(rows: Array, H: int, d: int) -> Array:
    return None if rows is None else rows.reshape(-1, H, d)


def _out(operands: Operands, context: Array, arrays: Arrays) -> Array:
    return arrays.linear("fused", context, operands.matrices["out"], operands.matrices["out_bias"])


# The order of a sample's axes in which scores come, and in which values want the weights.
_SCORE_AXES = {"projected": "HTP", "query": "THP", "key": "TPH"}
_VALUE_AXES = {"projected": "HTP", "context": "THP", "output": "TPH"}
_GROUP_BYTES = 8 << 20


def _groups(image: Array) -> Iterator[slice]:
    """Samples whose images stay in the cache between the scores and the values."""
    n, P, Di = image.shape
    step = max(2, _GROUP_BYTES // (4 * P * Di))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _score_side(
    operands: Operands, image: Array, text: Array, q: Array, k: Array, arrays: Arrays
) -> tuple[Array, Array, Array | None]:
    """What is multiplied to scores, each with samples first, and a bias of the scores."""
    m, plan = operands.matrices, operands.plan
    n, T, P = text.shape[0], text.shape[1], image.shape[1]
    H, d = operands.config.num_heads, operands.config.head_dim
    if plan.scores == "query":
        u = arrays.per_head("widened", q, m["key_heads"])  # [n T, H, Di]
        bias = None
        if m["key_bias"] is not None:
            bias = arrays.per_head("bias", q, m["key_bias"]).reshape(n, T, H, 1)
        return u.reshape(n, T * H, -1), image.swapaxes(1, 2), bias
    if plan.scores == "key":
        w = arrays.per_head("into key", k, m["query_heads"]).reshape(n, P * H, -1)
        # The bias of the query survives as one number a head and image token.
        bias = arrays.per_head("bias", k, m["query_bias"]).reshape(n, 1, P, H)
        return text, w.swapaxes(1, 2), bias
    return q.reshape(n, T, H, d), k.reshape(n, P, H, d), None


def _weights(
    operands: Operands,
    side: tuple[Array, Array, Array | None],
    some: slice,
    real: Array | None,
    arrays: Arrays,
) -> Array:
    """Attention weights of some samples after softmax over P, axes as in `_SCORE_AXES`."""
    order, H = operands.plan.scores, operands.config.num_heads
    left, right, bias = side[0][some], side[1][some], side[2]
    g = left.shape[0]
    axis = 2 if order == "key" else 3
    if order == "projected":
        scores = arrays.heads_to_scores(left, right)  # [g, H, T, P]
    else:
        scores = arrays.give("scores", g, left.shape[1], right.shape[2])
        arrays.batched(left, right, scores)
        split = (g, -1, right.shape[2] // H, H) if axis == 2 else (g, left.shape[1] // H, H, -1)
        scores = scores.reshape(split)  # [g, T, P, H] or [g, T, H, P]
    if bias is not None:
        scores += bias[some]
    if real is not None:
        real = real.reshape((g, 1, -1, 1) if axis == 2 else (g, 1, 1, -1))
    return arrays.softmax(scores, axis, real, operands.config.null_token)


def _order(axes: str, wanted: str) -> tuple[int, ...]:
    return (0, *(1 + axes.index(letter) for letter in wanted))
