"""Seeded initial weights without torch, equal bit for bit to those of the torch modules.

Torch's CPU generator is MT19937 with Knuth's seeding, which numpy's legacy seeding shares.
`uniform_` takes the low 24 bits of each 32-bit draw, scales in float64 and rounds once
(torch, aten/src/ATen/core/TransformationHelper.h, `uniform_real`). The
method's layers (`layers.py`) say which parameters are drawn, and with which bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
from fusecli.fusion.config import FusionConfig

LARGEST_SEED = (1 << 32) - 1


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
    """The parameters that `torch.manual_seed(seed)` followed by the module gives.

    Args:
        config: sizes and switches.
        seed: 0 to 2**32 - 1.
        rows: only these parameters, and only these rows of each; None for all.

    Returns:
        float32 arrays under their `state_dict` names.

    Raises:
        UsageError: the seed is out of range.
    """
    layers = config.layers_of_method()
    shapes = {name: shape for layer in layers for name, shape in layer.shapes.items()}
    constants = {name: value for layer in layers for name, value in layer.constants.items()}
    wanted = dict.fromkeys(shapes, slice(None)) if rows is None else dict(rows)
    stream = np.random.RandomState(check_seed(seed))
    weights: dict[str, NDArray[np.float32]] = {
        name: np.full(shapes[name], constants[name], np.float32)[part]
        for name, part in wanted.items()
        if name in constants
    }
    for name, bound in (draw for layer in layers for draw in layer.draws):
        if len(weights) == len(wanted):
            break
        bits = stream.randint(0, 1 << 32, math.prod(shapes[name]), dtype=np.uint32)
        if name in wanted and name not in weights:
            part = bits.reshape(shapes[name])[wanted[name]]
            weights[name] = _uniform(part.reshape(-1), bound).reshape(part.shape)
    return weights


def _uniform(bits: NDArray[np.uint32], bound: float) -> NDArray[np.float32]:
    high = np.float64(np.float32(bound))
    out = np.empty(bits.shape, np.float32)
    step = 1 << 16  # the float64 numbers in between stay in the cache
    for start in range(0, bits.size, step):
        unit = (bits[start : start + step] & np.uint32(0xFFFFFF)) * 2.0**-24
        out[start : start + step] = unit * (2 * high) - high
    return out
