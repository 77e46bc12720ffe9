"""Standardisation of the input channels, and how it is folded into a module's projections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.config import FusionConfig
from fusecli.training.examples import ChannelStatistics

Arrays = dict[str, NDArray[np.float32]]


def fold_linear(
    weight: NDArray[np.float32], bias: NDArray[np.float32], statistics: ChannelStatistics
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The linear layer that does to raw channels what this one does to standardised ones.

    W (x - mean) / std + b = (W / std) x + (b - (W / std) mean), computed in float64 and rounded
    once.

    Args:
        weight: `[D, Dx]`.
        bias: `[D]`.
        statistics: mean and spread of the Dx channels.
    """
    exact = weight.astype(np.float64) / statistics.std.astype(np.float64)
    shifted = bias.astype(np.float64) - exact @ statistics.mean.astype(np.float64)
    return exact.astype(np.float32), shifted.astype(np.float32)


def fold_fusion(
    config: FusionConfig, arrays: Arrays, text: ChannelStatistics, image: ChannelStatistics
) -> Arrays:
    """A fusion's parameters for raw features, from those for standardised features.

    Args:
        config: of the fusion.
        arrays: its parameters under their `state_dict` names.
        text, image: what the features were standardised with.
    """
    folded = dict(arrays)
    known = {"text": text, "image": image}
    for layer, sides in config.how.input_layers(config).items():
        columns = ChannelStatistics(
            np.concatenate([known[side].mean for side in sides]),
            np.concatenate([known[side].std for side in sides]),
        )
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        folded[weight], folded[bias] = fold_linear(arrays[weight], arrays[bias], columns)
    return folded


def unit_statistics(width: int) -> ChannelStatistics:
    """Mean 0 and spread 1: leaves the channels as they are."""
    return ChannelStatistics(np.zeros(width, np.float32), np.ones(width, np.float32))
