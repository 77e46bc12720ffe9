"""The arithmetic of attention for inference, once for numpy and torch, in any order of products.

With one image token softmax is 1: the fused row is `Wo (V y + bv) + bo` for every text token.
The other facts that save work are in `operands.py`, the choice of the order is in `plan.py`.

y is the image `[n, P, Di]`, x the text `[n, T, Dt]`, n the samples of a chunk. Where the image is
the query side, the caller swaps the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusecli.fusion.backend.arrays import Array, ArrayBackend
from fusecli.fusion.base import WeightsOut
from fusecli.fusion.methods.attention.operands import Operands

# The order of a sample's axes in which scores come, and in which values want the weights.
_SCORE_AXES = {"projected": "HTP", "query": "THP", "key": "TPH"}
_VALUE_AXES = {"projected": "HTP", "context": "THP", "output": "TPH"}
_GROUP_BYTES = 8 << 20


class _Chunk:
    """A chunk of samples that is fused: a plain class, since one is made for each chunk.

    Attributes:
        operands: from `prepare`.
        image: y `[n, P, Di]`.
        text: x `[n, T, Dt]`.
        real: bool `[n, P]` or `[n, T, P]`, true where a token takes part; None if all do.
        arrays: the array library.
        weights_out: receives the attention weights; None if nobody wants them.
        sizes: n, T and P.
    """

    def __init__(
        self,
        operands: Operands,
        image: Array,
        text: Array,
        real: Array | None,
        arrays: ArrayBackend,
        weights_out: WeightsOut | None,
    ) -> None:
        self.operands, self.image, self.text, self.real = operands, image, text, real
        self.arrays, self.weights_out = arrays, weights_out
        self.sizes: tuple[int, int, int] = (text.shape[0], text.shape[1], image.shape[1])

    @property
    def groups(self) -> Iterator[slice]:
        """Groups of samples whose images stay in the cache between the scores and the values."""
        n, P, Di = self.image.shape
        step = max(2, _GROUP_BYTES // (4 * P * Di))
        return (slice(start, min(start + step, n)) for start in range(0, n, step))


def attend(
    operands: Operands,
    image: Array,
    text: Array,
    arrays: ArrayBackend,
    mask: Array | None = None,
    weights_out: WeightsOut | None = None,
) -> Array:
    """Fuse a chunk of samples, none of which sees another.

    Args:
        operands: from `prepare`.
        image: y `[n, P, Di]`; masked tokens hold zeros.
        text: x `[n, T, Dt]`.
        arrays: the same as for `prepare`.
        mask: bool `[n, P]` or, by text token, `[n, T, P]`: true for image tokens that take
            part; None if all do. Where none does, the context is zero.
        weights_out: receives the attention weights. Asking for them does not change the result.

    Returns:
        `[n, T, D]`, in workspace that the next call overwrites.
    """
    matrices, config, plan = operands.matrices, operands.config, operands.plan
    n, T = text.shape[0], text.shape[1]
    x, y = text.reshape(n * T, -1), image.reshape(-1, image.shape[2])
    t: Any = None  # the projected text
    if matrices.text is not None:
        t = arrays.linear("text", x, matrices.text, matrices.text_bias)
    i = None  # the projected image
    if matrices.image is not None:
        i = arrays.linear("image", y, matrices.image, None)
    real = empty = None
    if mask is not None:
        empty = ~mask.any(-1)  # [n] or [n, T]
        # Softmax over no token is undefined; these rows get their result below.
        real = mask | empty[..., None]
    v = None
    if plan.values != "context":
        v = arrays.linear("value", y if plan.fold_value else i, matrices.value, matrices.value_bias)
    if plan.scores == "none":
        row = v if plan.fold_output else arrays.linear("row", v, matrices.out, matrices.out_bias)
        fused = arrays.repeated("fused", row, T)  # [n, T, D]
        if weights_out is not None:
            weights_out.append(arrays.ones(n, config.num_heads, T, 1))
    else:
        q = k = None
        if plan.scores != "key":
            source = x if plan.fold_query else t
            q = arrays.linear("query", source, matrices.query, matrices.query_bias)
        if plan.scores != "query":
            k = arrays.linear("key", y if plan.fold_key else i, matrices.key, matrices.key_bias)
        fused = _weighed(_Chunk(operands, image, text, real, arrays, weights_out), q, k, v)
    if empty is not None:
        fused[empty] = matrices.empty
    if config.residual:
        fused += t.reshape(fused.shape)
    if config.norm:
        fused = arrays.layer_norm(fused, matrices.norm, matrices.norm_bias)
    return fused


def _weighed(chunk: _Chunk, q: Array, k: Array, v: Array) -> Array:
    """From q `[n T, D]`, k and v `[n P, D]`, each None where not formed, to `[n, T, D]`."""
    plan, config, arrays = chunk.operands.plan, chunk.operands.config, chunk.arrays
    n, T, P = chunk.sizes
    H, d = config.num_heads, config.head_dim
    q, k, v = (_per_head(rows, H, d) for rows in (q, k, v))
    side = _score_side(chunk, q, k)
    context = None
    if plan.scores == plan.values == "projected" and not config.null_token:
        heads = q.reshape(n, T, H, d), k.reshape(n, P, H, d), v.reshape(n, P, H, d)
        context = arrays.attention(*heads, chunk.real)  # [n, T, H, d], or None
    if context is None:
        return _mixed(chunk, side, v)
    if chunk.weights_out is not None:
        for group in chunk.groups:
            chunk.weights_out.append(_weights(chunk, side, group))
    return _out(chunk, context.reshape(n * T, config.embed_dim))


def _mixed(chunk: _Chunk, side: tuple[Array, Array, Array | None], v: Array) -> Array:
    """The values, mixed by the attention weights: `[n, T, D]`.

    Args:
        chunk: the samples.
        side: the factors and the bias of the scores.
        v: `[n P, H, d]`; None where it is not formed.
    """
    plan, matrices, arrays = chunk.operands.plan, chunk.operands.matrices, chunk.arrays
    n, T, P = chunk.sizes
    H = chunk.operands.config.num_heads
    right, into = _value_side(chunk, v)
    total = None  # the sum of the real weights, which is not 1 with a null token
    if plan.values == "context" and matrices.value_bias is not None:
        total = arrays.workspace("total", n * T, H, 1)
    for group in chunk.groups:
        a = _weights(chunk, side, group)
        if chunk.weights_out is not None:
            order = _order(_SCORE_AXES[plan.scores], "HTP")
            chunk.weights_out.append(arrays.copied(arrays.permuted(a, order)))
        wanted = _order(_SCORE_AXES[plan.scores], _VALUE_AXES[plan.values])
        if wanted != (0, 1, 2, 3):
            a = arrays.rearranged("weights", a, wanted)
        g = a.shape[0]
        if plan.values == "projected":
            arrays.heads_to_context(a, right[group], into[group])
        elif plan.values == "context":
            mixed = into[group].reshape(g, T * H, -1)
            arrays.batched(a.reshape(g, T * H, P), right[group], mixed)
            if total is not None:
                total.reshape(n, T, H)[group] = a.sum(-1)
        else:
            arrays.batched(a.reshape(g, T, P * H), right[group], into[group])
    if plan.values == "output":
        into += matrices.out_bias
        return into
    if plan.values == "context":
        into = arrays.per_head("context", into.reshape(n * T, H, -1), matrices.value_heads)
        if total is not None:
            into += total * matrices.value_bias
    return _out(chunk, into.reshape(n * T, chunk.operands.config.embed_dim))


def _value_side(chunk: _Chunk, v: Array) -> tuple[Array, Array]:
    """What the attention weights are multiplied with, and the workspace for the products.

    Args:
        chunk: the samples.
        v: `[n P, H, d]`; None where it is not formed.
    """
    operands, arrays = chunk.operands, chunk.arrays
    n, T, P = chunk.sizes
    H, d, D = operands.config.num_heads, operands.config.head_dim, operands.config.embed_dim
    if operands.plan.values == "projected":
        return v.reshape(n, P, H, d), arrays.workspace("context", n, T, H, d)
    if operands.plan.values == "context":
        # The widened queries are no longer needed once their scores exist: reuse their buffer.
        return chunk.image, arrays.workspace("widened", n, T, H, chunk.image.shape[2])
    right = arrays.per_head("into value", v, operands.matrices.out_heads).reshape(n, P * H, D)
    return right, arrays.workspace("fused", n, T, D)


def _per_head(rows: Array, H: int, d: int) -> Array:
    return None if rows is None else rows.reshape(-1, H, d)


def _out(chunk: _Chunk, context: Array) -> Array:
    """The output layer: from the context `[n T, D]` to `[n, T, D]`."""
    (n, T, _), matrices = chunk.sizes, chunk.operands.matrices
    return chunk.arrays.linear("fused", context, matrices.out, matrices.out_bias).reshape(
        n, T, context.shape[1]
    )


def _score_side(chunk: _Chunk, q: Array, k: Array) -> tuple[Array, Array, Array | None]:
    """The two factors of the scores, each with samples first, and the bias of the scores."""
    operands, image, text, arrays = chunk.operands, chunk.image, chunk.text, chunk.arrays
    matrices, plan = operands.matrices, operands.plan
    n, T, P = chunk.sizes
    H, d = operands.config.num_heads, operands.config.head_dim
    if plan.scores == "query":
        u = arrays.per_head("widened", q, matrices.key_heads)  # [n T, H, Di]
        bias = None
        if matrices.key_bias is not None:
            bias = arrays.per_head("bias", q, matrices.key_bias).reshape(n, T, H, 1)
        return u.reshape(n, T * H, -1), image.swapaxes(1, 2), bias
    if plan.scores == "key":
        w = arrays.per_head("into key", k, matrices.query_heads).reshape(n, P * H, -1)
        # The bias of the query survives as one number a head and image token.
        bias = arrays.per_head("bias", k, matrices.query_bias).reshape(n, 1, P, H)
        return text, w.swapaxes(1, 2), bias
    return q.reshape(n, T, H, d), k.reshape(n, P, H, d), None


def _weights(chunk: _Chunk, side: tuple[Array, Array, Array | None], group: slice) -> Array:
    """Attention weights of a group of samples after softmax over P, axes as in `_SCORE_AXES`."""
    arrays, config = chunk.arrays, chunk.operands.config
    order, H = chunk.operands.plan.scores, config.num_heads
    left, right, bias = side[0][group], side[1][group], side[2]
    g = left.shape[0]
    axis = 2 if order == "key" else 3
    if order == "projected":
        scores = arrays.heads_to_scores(left, right)  # [g, H, T, P]
    else:
        scores = arrays.workspace("scores", g, left.shape[1], right.shape[2])
        arrays.batched(left, right, scores)
        split = (g, -1, right.shape[2] // H, H) if axis == 2 else (g, left.shape[1] // H, H, -1)
        scores = scores.reshape(split)  # [g, T, P, H] or [g, T, H, P]
    if bias is not None:
        scores += bias[group]
    real = None
    if chunk.real is not None:
        real = chunk.real[group].reshape(g, -1, chunk.real.shape[-1])  # [g, T or 1, P]
        real = {
            "projected": real[:, None],  # [g, 1, T or 1, P]
            "query": real[:, :, None],  # [g, T or 1, 1, P]
            "key": real[..., None],  # [g, T or 1, P, 1]
        }[order]
    return arrays.softmax(scores, axis, real, config.null_token)


def _order(axes: str, wanted: str) -> tuple[int, ...]:
    return (0, *(1 + axes.index(letter) for letter in wanted))
