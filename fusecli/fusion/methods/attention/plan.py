"""Which order of matrix products gives the fused rows at the least cost. Pure arithmetic.

A chain of matrix products gives the same numbers in any order. Where the two projections and
the attention's own input layers meet, the order decides the cost:

    scores  projected  q and k, then q k'
            query      the key weights are taken into the query; k is never formed
            key        the query weights are taken into the key; q is never formed
    values  projected  v, then a v, then the output layer
            context    a y first, then the value weights; v is never formed
            output     the output weights are taken into v; a then gives the result

Two linear layers in a row can be folded into one beforehand (in float64, counted twice) or be
run as a chain. With one image token (and no null token) softmax over one score is 1: neither
scores nor weights are needed. The letters are in `features/axes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from fusecli.fusion.base import Plan, samples_within
from fusecli.fusion.literals import Dtype, ScoreOrder, ValueOrder
from fusecli.fusion.settings import Sizes

SCORE_ORDERS: tuple[ScoreOrder, ...] = ("projected", "query", "key")
VALUE_ORDERS: tuple[ValueOrder, ...] = ("projected", "context", "output")
# The orders a narrow type is as exact in as the plain module. Measured against float64: in
# float32 all are; in bfloat16 the key order loses up to twice as much; in float16 scores that
# are not formed head by head in float32 overflow (NaN at feature norms of 2,000).
_EXACT_ORDERS: dict[Dtype, tuple[tuple[ScoreOrder, ...], tuple[ValueOrder, ...]]] = {
    "float32": (SCORE_ORDERS, VALUE_ORDERS),
    "bfloat16": (("projected", "query"), ("projected", "context")),
    "float16": (("projected",), ("projected",)),
}
# Folding is done in float64: a multiply-add of it costs two of a large product.
FOLDING = 2.0
TORCH_IMPORT_S = 1.7
PRODUCTS_A_SECOND = 4.5e10  # multiply-adds, a core
SHARED_COST = 1e9  # multiply-adds; starting threads for less takes longer than the products


def choose_plan(sizes: Sizes, *, prepared: bool = False, dtype: Dtype = "float32") -> Plan:
    """Pick the cheapest order for a job.

    Args:
        sizes: of the whole job, N samples of it.
        prepared: folding is done already or is shared by many jobs, so it costs nothing here.
        dtype: the type to compute in; orders that are less exact in it are left out.
    """
    return min(all_plans(sizes, prepared=prepared, dtype=dtype), key=lambda plan: plan.cost)


def worth_an_accelerator(plan: Plan, cores: int) -> bool:
    """Whether the products take longer on the CPU than importing torch to look for a GPU."""
    return plan.cost / (PRODUCTS_A_SECOND * cores) > TORCH_IMPORT_S


def workspace_bytes(sizes: Sizes, plan: Plan) -> int:
    """About what one sample takes in memory, in bytes: inputs, workspace, result."""
    s = sizes
    forms_k = plan.scores in ("projected", "key")
    forms_v = plan.values in ("projected", "output")
    floats = 2 * (s.P * s.Di + s.T * s.Dt) + 4 * s.T * s.D  # the next chunk is read meanwhile
    if plan.scores == "none":
        return 4 * (floats + 3 * s.D)
    floats += s.T * s.D * (s.residual or not plan.fold_query) + 2 * s.H * s.T * s.P
    floats += s.P * s.D * (forms_k + forms_v + (not plan.fold_key or not plan.fold_value))
    if plan.scores == "query" or plan.values == "context":
        floats += s.T * s.H * s.Di * (1 if plan.scores == "query" else 2)
    if plan.scores == "key":
        floats += s.P * s.H * s.Dt
    if plan.values == "output":
        floats += s.P * s.H * s.D
    return 4 * floats


def chunk_samples(sizes: Sizes, plan: Plan, max_memory: int | None, workers: int = 1) -> int:
    """Samples to compute at once: enough for large products, few enough for the cache.

    Args:
        sizes: of the job.
        plan: its order.
        max_memory: a bound in bytes that the user set for all chunks in memory, or None.
        workers: chunks under way at once; each gets as many, where the job is worth sharing.
    """
    each = workspace_bytes(sizes, plan)
    step = samples_within(each, min(sizes.T, sizes.P), sizes.N, max_memory, workers)
    if plan.cost < SHARED_COST:
        return step
    chunks = -(-sizes.N // step)
    return -(-sizes.N // (-(-chunks // workers) * workers))


def all_plans(sizes: Sizes, *, prepared: bool = False, dtype: Dtype = "float32") -> Iterator[Plan]:
    """Every possible order with its cost, the simplest first (which a tie goes to)."""
    plain = plain_multiply_adds(sizes)
    flags = (False, True)
    if sizes.P == 1 and not sizes.null_token:
        for fold_value, fold_output in ((False, False), (True, False), (True, True)):
            yield _one_token(sizes, fold_value, fold_output, plain, prepared)
        return
    for scores, values in product(*_EXACT_ORDERS[dtype]):
        for q, k, v in product(flags, flags, flags):
            # Taking weights of one side into the other needs them as one matrix.
            if (scores == "query" and not k) or (scores == "key" and not q):
                continue
            if values == "context" and not v:
                continue
            yield _with_scores(sizes, scores, values, (q, k, v), plain, prepared)


def plain_multiply_adds(s: Sizes) -> int:
    """Multiply-adds of `text_proj`, `image_proj` and `nn.MultiheadAttention` as they stand."""
    text = s.T * s.Dt * s.D + 2 * s.T * s.D * s.D  # text_proj, q, out_proj
    image = s.P * s.Di * s.D + 2 * s.P * s.D * s.D  # image_proj, k, v
    return s.N * (text + image + 2 * s.T * s.P * s.D)


def _one_token(s: Sizes, fold_value: bool, fold_output: bool, plain: int, prepared: bool) -> Plan:
    once = (s.D * s.D * s.Di if fold_value else 0) + (s.D * s.D * s.Di if fold_output else 0)
    rows = s.Di * s.D  # the folded layer, or image_proj
    rows += 0 if fold_output else s.D * s.D  # out_proj
    rows += 0 if fold_value else s.D * s.D  # v after image_proj
    if s.residual:
        rows += s.T * s.Dt * s.D
    cost = s.N * rows + (0 if prepared else FOLDING * once)
    total = s.N * rows + (0 if prepared else once)
    return Plan("none", "none", False, False, fold_value, fold_output, total, plain, cost)


def _with_scores(
    s: Sizes,
    scores: ScoreOrder,
    values: ValueOrder,
    folds: tuple[bool, bool, bool],
    plain: int,
    prepared: bool,
) -> Plan:
    """The plan of one order of products, with its multiply-adds.

    Args:
        s: the sizes.
        scores, values: the order on each side.
        folds: whether query, key and value each take one folded layer.
        plain: multiply-adds of the plain module.
        prepared: the folded layers exist already, so that folding costs nothing.
    """
    fold_query, fold_key, fold_value = folds
    T, P, Dt, Di, D, H = s.T, s.P, s.Dt, s.Di, s.D, s.H
    once = D * D * ((Dt if fold_query else 0) + Di * (fold_key + fold_value))
    forms_q, forms_k, forms_v = scores != "key", scores != "query", values != "context"
    large = 0
    if s.residual or (forms_q and not fold_query):
        large += T * Dt * D  # the projected text
    if (forms_k and not fold_key) or (forms_v and not fold_value):
        large += P * Di * D  # the projected image
    if forms_q:
        large += T * D * (Dt if fold_query else D)
    if forms_k:
        large += P * D * (Di if fold_key else D)
    if forms_v:
        large += P * D * (Di if fold_value else D)
    if scores == "projected":
        score_adds, score_edge = T * P * D, min(T, P)
    elif scores == "query":
        large += T * D * Di
        score_adds, score_edge = H * T * P * Di, min(H * T, P)
    else:
        large += P * D * Dt
        score_adds, score_edge = H * T * P * Dt, min(T, H * P)
    if values == "projected":
        value_adds, value_edge = T * P * D, min(T, P)
        large += T * D * D
    elif values == "context":
        value_adds, value_edge = H * T * P * Di, min(H * T, P)
        large += T * Di * D + T * D * D
    else:
        large += P * D * D
        value_adds, value_edge = H * T * P * D, min(T, H * P)
    small = score_adds + value_adds
    dear = score_adds * small_product(score_edge) + value_adds * small_product(value_edge)
    flags = (fold_query, fold_key, fold_value, False)
    cost = s.N * (large + dear) + (0 if prepared else FOLDING * once)
    total = s.N * (large + small) + (0 if prepared else once)
    return Plan(scores, values, *flags, total, plain, cost)


def small_product(edge: int) -> float:
    """How much slower one multiply-add is in a small product than in a large one.

    Large products take all rows of a chunk at once; small ones are made for each sample or head.

    Measured on two cores: 1.05 to 1.25 where the shorter side of the result has hundreds of
    rows, 1.25 at 64, 1.7 at 49. With these the order picked was the quickest, or nearly, for
    P from 2 to 197 and T from 8 to 77 on numpy.

    Args:
        edge: the shorter side of the product's result.
    """
    return 1.05 + 16 / edge
