"""How spread attention is in the first pairs of a run: looked at once, before the work begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.pair_inputs import Features, PairChecks
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.weights import RunWeights
from fusecli.errors import FuseError
from fusecli.fusion.backend.device import one_thread_a_product
from fusecli.fusion.base import Computing
from fusecli.fusion.build import build_fusion
from fusecli.fusion.results import query_sides
from fusecli.pairs.open import Pair
from fusecli.report import result_diagnoses
from fusecli.report.report import Diagnosis

_PAIRS = 4
_TRIED = 32  # pairs, until so many can be read
_WEIGHTS = 1 << 22  # attention weights that are formed for one pair at most


def uniform_attention(
    spec: FusionSpec, weights: RunWeights, first: Sequence[Pair]
) -> list[Diagnosis]:
    """Whether attention hardly depends on the query, measured in the first pairs of the run.

    It is a diagnosis of the run: looking at every pair would take as long as fusing it. The same
    pairs are looked at whatever is left to do, on the CPU in float32, so that every part of a run
    says the same.

    Args:
        spec: the run's.
        weights: the run's.
        first: the first pairs.
    """
    if spec.config.method != "attention" or (spec.config.gate and spec.seed is not None):
        return []  # a gate that starts closed has a diagnosis of its own
    reader = PairChecks(spec)
    ratios: list[float] = []
    try:
        for pair in first[:_TRIED]:
            try:
                ratio = _entropy_ratio(spec, weights, reader.read(pair))
            except (FuseError, OSError, MemoryError):  # said when its turn comes
                continue
            if ratio is not None:
                ratios.append(ratio)
            if len(ratios) == _PAIRS:
                break
    finally:
        reader.close()
    if not ratios:
        return []
    mean = sum(ratios) / len(ratios)
    query = query_sides(spec.direction)[0]
    return result_diagnoses.uniform_attention(mean, spec.weights, spec.seed, query, len(ratios))


def _entropy_ratio(spec: FusionSpec, weights: RunWeights, features: Features) -> float | None:
    """The mean entropy of a pair's attention weights over its maximum; None without a choice."""
    T, P = len(features.text), len(features.image)
    if spec.config.num_heads * T * P > _WEIGHTS:
        return None
    query = query_sides(spec.direction)[0]
    computing = Computing(query, "cpu", "float32", "numpy")
    formed: list[NDArray[np.float32]] = []
    image_mask = None if features.image_mask is None else features.image_mask[None]
    text_mask = None if features.text_mask is None else features.text_mask[None]
    allowed = None if features.attention_mask is None else features.attention_mask[None]
    with one_thread_a_product(), np.errstate(all="ignore"):
        fusion = build_fusion(spec.config, weights.load, spec.config.sizes(1, T, P), computing)
        if fusion.plan is None or fusion.plan.scores == "none":
            return None
        image, text = features.image[None], features.text[None]
        fusion.fuse(image, text, image_mask, text_mask, formed, allowed)
    asking, answering = (text_mask, image_mask) if query == "text" else (image_mask, text_mask)
    if query == "image" and allowed is not None:
        allowed = allowed.swapaxes(1, 2)
    seen = result_diagnoses.attention_statistics(
        np.concatenate(formed), asking, answering, spec.config.null_token, allowed
    )
    return None if seen is None else seen.entropy_ratio
