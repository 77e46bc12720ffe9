"""The weights as one order of products needs them: folded, scaled, split by head, and on the
device.

Two facts save work beyond the order (exact in real arithmetic, letters in `features/axes.py`):

- Two linear layers in a row are one. It is formed in float64 and rounded once.
- A bias on the keys adds the same to all scores of a query, and softmax does not see it.
  Attention weights sum to 1, so the bias on the values passes through and joins the output
  bias. Not so with a null token: its score is 0 and it takes a share of the weights.

Matrices are `[out, in]` as in torch, and per head `[H, d, in]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import Array, ArrayBackend
from fusecli.fusion.base import Plan
from fusecli.fusion.settings import FusionSettings
from fusecli.records import record

_BLOCK = 1 << 16  # numbers: half a megabyte in float64
_ROWS = 16  # at least, and a multiple: a BLAS then adds each row up as in the whole matrix


@record
class Matrices:
    """Weights and biases; None where the plan does not form that layer or has nothing to add.

    Attributes:
        text, image: the projections `[D, Dt]`, `[D, Di]`, where their results are formed.
        query, key, value: the input layers of attention, `[D, .]`, scaled and folded.
        query_heads, key_heads: the same by head, `[H, d, .]`, for the key and query orders.
        value_heads: value weights by head, `[H, Di, d]`, for values in the context order.
        out: the output layer, `[D, D]`; `out_heads` by head, `[H, d, D]`.
        empty: `[D]`, the fused row where no image token takes part.
        norm: weight of the LayerNorm, `[D]`.
    """

    text: Array | None = None
    text_bias: Array | None = None
    image: Array | None = None
    query: Array | None = None
    query_bias: Array | None = None
    query_heads: Array | None = None
    key: Array | None = None
    key_bias: Array | None = None
    key_heads: Array | None = None
    value: Array | None = None
    value_bias: Array | None = None
    value_heads: Array | None = None
    out: Array | None = None
    out_bias: Array | None = None
    out_heads: Array | None = None
    empty: Array | None = None
    norm: Array | None = None
    norm_bias: Array | None = None


@record
class Operands:
    """The weights as one plan needs them, on the device that computes.

    Attributes:
        config, plan: what they were made for.
        matrices: the weights.
    """

    config: FusionSettings
    plan: Plan
    matrices: Matrices


def needed_parameters(config: FusionSettings, plan: Plan, names: Iterable[str]) -> dict[str, slice]:
    """The parameters that a plan uses, and which of their rows.

    With one image token neither query nor key is among them.

    Args:
        config: the fusion.
        plan: its order of products.
        names: of all its parameters.
    """
    needed = dict.fromkeys(names, slice(None))
    if plan.scores == "none":
        value = slice(2 * config.embed_dim, 3 * config.embed_dim)
        needed["attention.in_proj_bias"] = value
        if config.context_dim:
            del needed["attention.q_proj_weight"], needed["attention.k_proj_weight"]
        else:
            needed["attention.in_proj_weight"] = value
        if not config.residual:
            del needed["text_proj.weight"], needed["text_proj.bias"]
    return needed


def prepare(
    weights: Mapping[str, NDArray[np.float32]],
    config: FusionSettings,
    plan: Plan,
    arrays: ArrayBackend,
) -> Operands:
    """Fold, scale and place the weights for one plan.

    Args:
        weights: float32, under their `state_dict` names; those rows of `needed_parameters`.
        config: what they are weights of.
        plan: the order of products.
        arrays: where they are computed with.
    """
    D = config.embed_dim
    Wi, bi = weights["image_proj.weight"], weights["image_proj.bias"]
    b_in = weights["attention.in_proj_bias"]
    Wq, Wk, Wv = _input_matrices(weights, config)
    bv = b_in[-D:]  # behind query and key, where those were needed
    Wo, bo = weights["attention.out_proj.weight"], weights["attention.out_proj.bias"]
    null = config.null_token
    # Biases stay in float64 until they are added, once.
    v_bias = _product(Wv, bi) + bv
    formed: dict[str, NDArray[Any] | None] = {
        "out_bias": bo if null else _product(Wo, v_bias) + bo,
        "empty": bo,  # an image without a real token has a context of zero
        "out": None if plan.fold_output else Wo,
    }
    formed |= _value_matrices(weights, config, plan, Wv, v_bias)
    if plan.values != "context" and plan.fold_output:
        # The product with "value" is the result, so it includes the output bias.
        formed["value_bias"] = formed["out_bias"]
    if plan.scores != "none":
        formed |= _score_matrices(weights, config, plan, Wq, Wk)
    if uses_projected_text(config, plan):
        formed["text"], formed["text_bias"] = weights["text_proj.weight"], weights["text_proj.bias"]
    if uses_projected_image(plan):
        formed["image"] = Wi  # its bias is folded into the layers behind it
    if config.norm:
        formed["norm"], formed["norm_bias"] = weights["norm.weight"], weights["norm.bias"]
    placed = {
        name: None if array is None else arrays.load(np.ascontiguousarray(array, np.float32))
        for name, array in formed.items()
    }
    return Operands(config, plan, Matrices(**placed))


def _value_matrices(
    weights: Mapping[str, NDArray[np.float32]],
    config: FusionSettings,
    plan: Plan,
    Wv: NDArray[Any],
    v_bias: NDArray[Any],
) -> dict[str, NDArray[Any] | None]:
    """The matrices that make values of the image.

    Args:
        weights, config, plan: as for `prepare`.
        Wv: `[D, D]`.
        v_bias: of a value, `[D]` in float64.
    """
    D, H, d = config.embed_dim, config.num_heads, config.head_dim
    Wi, Wo = weights["image_proj.weight"], weights["attention.out_proj.weight"]
    null = config.null_token
    formed: dict[str, NDArray[Any] | None] = {}
    V = _product(Wv, Wi) if plan.fold_value else Wv
    if plan.values == "context":
        formed["value_heads"] = V.reshape(H, d, -1).swapaxes(1, 2)  # [H, Di, d]
        formed["value_bias"] = v_bias.reshape(H, d) if null else None
    else:
        formed["value"] = _product(Wo, V) if plan.fold_output else V
        formed["value_bias"] = v_bias if null else None
    if plan.values == "output":
        formed["out_heads"] = Wo.reshape(D, H, d).transpose(1, 2, 0)  # [H, d, D]
    return formed


def _score_matrices(
    weights: Mapping[str, NDArray[np.float32]],
    config: FusionSettings,
    plan: Plan,
    Wq: NDArray[Any],
    Wk: NDArray[Any],
) -> dict[str, NDArray[Any] | None]:
    """The matrices that make queries of the text and keys of the image.

    Args:
        weights, config, plan: as for `prepare`.
        Wq, Wk: `[D, D]`.
    """
    D, H, d = config.embed_dim, config.num_heads, config.head_dim
    Wi, bi = weights["image_proj.weight"], weights["image_proj.bias"]
    Wt, bt = weights["text_proj.weight"], weights["text_proj.bias"]
    b_in, null = weights["attention.in_proj_bias"], config.null_token
    bq, bk = b_in[:D], b_in[D : 2 * D]
    scale = 1 / math.sqrt(d)
    formed: dict[str, NDArray[Any] | None] = {}
    Q = (_product(Wq, Wt) if plan.fold_query else Wq) * scale
    K = _product(Wk, Wi) if plan.fold_key else Wk
    q_bias = (_product(Wq, bt) + bq) * scale
    k_bias = _product(Wk, bi) + bk
    if plan.scores == "key":
        formed["query_heads"] = Q.reshape(H, d, -1)  # [H, d, Dt]
        formed["query_bias"] = q_bias.reshape(H, d, 1)
    else:
        formed["query"] = Q
        formed["query_bias"] = q_bias if plan.fold_query else bq * scale
    if plan.scores == "query":
        formed["key_heads"] = K.reshape(H, d, -1)  # [H, d, Di]
        formed["key_bias"] = k_bias.reshape(H, d, 1) if null else None
    else:
        formed["key"] = K
        formed["key_bias"] = k_bias if null else None
    return formed


def _input_matrices(
    weights: Mapping[str, NDArray[np.float32]], config: FusionSettings
) -> list[NDArray[np.float32]]:
    """The weights of query, key and value; the first two are empty where they are not needed."""
    D = config.embed_dim
    if config.context_dim:
        none = np.zeros((0, D), np.float32)
        return [weights.get(f"attention.{part}_proj_weight", none) for part in "qkv"]
    W_in = weights["attention.in_proj_weight"]
    return [W_in[:-D][:D], W_in[:-D][D:], W_in[-D:]]


def uses_projected_text(config: FusionSettings, plan: Plan) -> bool:
    """Whether t = text_proj(x) itself is formed."""
    chained = plan.scores in ("projected", "query") and not plan.fold_query
    return chained or config.residual


def uses_projected_image(plan: Plan) -> bool:
    """Whether i = image_proj(y) itself is formed."""
    chained_key = plan.scores in ("projected", "key") and not plan.fold_key
    return chained_key or (plan.values != "context" and not plan.fold_value)


def _product(left: NDArray[np.float32], right: NDArray[np.generic]) -> NDArray[np.float64]:
    """`left @ right` in float64.

    Converting all of a large matrix for one product with a vector takes longer than the product
    does, so blocks of rows are converted, which stay in the cache.
    """
    wide = right.astype(np.float64)
    if right.ndim == 2:
        product: NDArray[np.float64] = left.astype(np.float64) @ wide
        return product
    result = np.empty(len(left))
    rows = max(_ROWS, _BLOCK // left.shape[1] // _ROWS * _ROWS)
    block = np.empty((min(rows, len(left)), left.shape[1]))
    for start in range(0, len(left), rows):
        part = left[start : start + rows]
        np.copyto(block[: len(part)], part)
        np.matmul(block[: len(part)], wide, out=result[start : start + rows])
    return result
