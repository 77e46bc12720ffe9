"""Seeded initial weights without torch, equal bit for bit to those of `ImageTextFusion`.

Torch's CPU generator is MT19937 with Knuth's seeding, which numpy's legacy seeding shares.
`uniform_` takes the low 24 bits of each 32-bit draw, scales in float64 and rounds once
(torch, aten/src/ATen/core/TransformationHelper.h, `uniform_real`). The bounds are those of
`nn.Linear` and `nn.MultiheadAttention` (torch/nn/init.py, `kaiming_uniform_` with a = sqrt(5)
and `xavier_uniform_`). Biases of the attention start at zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fusecli.config import FusionConfig
from fusecli.errors import UsageError

LARGEST_SEED = (1 << 32) - 1
_CONSTANT = {
    "attention.in_proj_bias": 0.0,
    "attention.out_proj.bias": 0.0,
    "norm.weight": 1.0,
    "norm.bias": 0.0,
}


def check_seed(seed: int) -> int:
    """Raises:
    UsageError: the seed is not one that both generators read alike.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed must be from 0 to {LARGEST_SEED:,}, found {seed}")
    return seed


def initial_weights(
    config: FusionConfig, seed: int, rows: Mapping[str, slice] | None = None
) -> dict[str, NDArray[np.float32]]:
    """The parameters that `torch.manual_seed(seed)` followed by `ImageTextFusion` gives.

    Args:
        config: sizes and switches.
        seed: 0 to 2**32 - 1.
        rows: only these parameters, and only these rows of each; None for all.

    Returns:
        float32 arrays under their `state_dict` names.

    Raises:
        UsageError: the seed is out of range.
    """
    shapes = config.parameter_shapes()
    wanted = dict.fromkeys(shapes, slice(None)) if rows is None else dict(rows)
    stream = np.random.RandomState(check_seed(seed))
    weights: dict[str, NDArray[np.float32]] = {
        name: np.full(shapes[name], _CONSTANT[name], np.float32)[part]
        for name, part in wanted.items()
        if name in _CONSTANT
    }
    for name, bound in _draws(config):
        if len(weights) == len(wanted):
            break
        bits = stream.randint(0, 1 << 32, math.prod(shapes[name]), dtype=np.uint32)
        if name in wanted and name not in _CONSTANT:
            part = bits.reshape(shapes[name])[wanted[name]]
            weights[name] = _uniform(part.reshape(-1), bound).reshape(part.shape)
    return weights


def _draws(config: FusionConfig) -> Iterator[tuple[str, float]]:
    """Parameters in the order in which torch draws them, with the bound of each."""
    D = config.embed_dim
    for name, fan_in in (
        ("text_proj", config.text_dim),
        ("image_proj", config.image_dim),
        ("attention.out_proj", D),
    ):
        yield f"{name}.weight", math.sqrt(3.0) * (math.sqrt(2.0 / (1 + 5)) / math.sqrt(fan_in))
        # The output bias is drawn although it is then set to zero: the stream must pass it.
        yield f"{name}.bias", 1 / math.sqrt(fan_in)
    yield "attention.in_proj_weight", math.sqrt(3.0) * math.sqrt(2.0 / (D + 3 * D))


def _uniform(bits: NDArray[np.uint32], bound: float) -> NDArray[np.float32]:
    high = np.float64(np.float32(bound))
    out = np.empty(bits.shape, np.float32)
    step = 1 << 16  # the float64 in between stays in the cache
    for start in range(0, bits.size, step):
        unit = (bits[start : start + step] & np.uint32(0xFFFFFF)) * 2.0**-24
        out[start : start + step] = unit * (2 * high) - high
    return out
