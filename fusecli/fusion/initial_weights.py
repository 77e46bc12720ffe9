"""Seeded initial weights without torch, equal bit for bit to those of the modules in `module.py`.

Torch's CPU generator is MT19937 with Knuth's seeding, which numpy's legacy seeding shares.
`uniform_` takes the low 24 bits of each 32-bit draw, scales in float64 and rounds once
(torch, aten/src/ATen/core/TransformationHelper.h, `uniform_real`). The bounds are those of
`nn.Linear` and `nn.MultiheadAttention` (torch/nn/init.py, `kaiming_uniform_` with a = sqrt(5)
and `xavier_uniform_`). Biases of attention start at zero, norms at one and zero, a gate at zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

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
    shapes = config.parameter_shapes()
    wanted = dict.fromkeys(shapes, slice(None)) if rows is None else dict(rows)
    stream = np.random.RandomState(check_seed(seed))
    weights: dict[str, NDArray[np.float32]] = {
        name: np.full(shapes[name], constant, np.float32)[part]
        for name, part in wanted.items()
        if (constant := _constant(name)) is not None
    }
    for name, bound in _draws(config):
        if len(weights) == len(wanted):
            break
        bits = stream.randint(0, 1 << 32, math.prod(shapes[name]), dtype=np.uint32)
        if name in wanted and name not in weights:
            part = bits.reshape(shapes[name])[wanted[name]]
            weights[name] = _uniform(part.reshape(-1), bound).reshape(part.shape)
    return weights


def _draws(config: FusionConfig) -> Iterator[tuple[str, float]]:
    """Parameters in the order in which torch draws them, with the bound of each."""
    D = config.embed_dim
    if config.method == "concat":
        yield from _linear("projection", config.text_dim + config.image_dim)
        return
    yield from _linear("text_proj", config.text_dim)
    yield from _linear("image_proj", config.image_dim)
    if config.method == "attention":
        yield from _attention("attention", D)
    if config.method == "transformer":
        for index in range(config.layers):
            layer = f"decoder.layers.{index}"
            yield from _attention(f"{layer}.self_attn", D)
            yield from _attention(f"{layer}.multihead_attn", D)
            yield from _linear(f"{layer}.linear1", D)
            yield from _linear(f"{layer}.linear2", config.ffn_dim)


def _linear(name: str, fan_in: int) -> Iterator[tuple[str, float]]:
    yield f"{name}.weight", math.sqrt(3.0) * (math.sqrt(2.0 / (1 + 5)) / math.sqrt(fan_in))
    yield f"{name}.bias", 1 / math.sqrt(fan_in)


def _attention(name: str, D: int) -> Iterator[tuple[str, float]]:
    # The output bias is drawn although it is then set to zero: the stream must pass it.
    yield from _linear(f"{name}.out_proj", D)
    yield f"{name}.in_proj_weight", math.sqrt(3.0) * math.sqrt(2.0 / (D + 3 * D))


def _constant(name: str) -> float | None:
    """The number that a parameter starts with where torch draws none."""
    layer, _, kind = name.rpartition(".")
    if "norm" in layer.rpartition(".")[2]:
        return 1.0 if kind == "weight" else 0.0
    return 0.0 if name.endswith(("in_proj_bias", "out_proj.bias", "gate")) else None


def _uniform(bits: NDArray[np.uint32], bound: float) -> NDArray[np.float32]:
    high = np.float64(np.float32(bound))
    out = np.empty(bits.shape, np.float32)
    step = 1 << 16  # the float64 in between stays in the cache
    for start in range(0, bits.size, step):
        unit = (bits[start : start + step] & np.uint32(0xFFFFFF)) * 2.0**-24
        out[start : start + step] = unit * (2 * high) - high
    return out
