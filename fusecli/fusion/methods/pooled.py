"""Fusion with the mean of one side: concat and sum, and the pooling of tokens to one vector.

Both are one arithmetic. With a projection W = [Wt Wi] of [text ; mean of the image], or with a
sum of two projections, a fused row is `A x + (B m + c)`: x the token that asks, m the mean of the
side that answers, formed in float32 before any narrower type, and the bracket once a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import NumpyArrays, TorchArrays
from fusecli.fusion.backend.device import numpy_threads, one_thread_a_product, resolve_device
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods.attention.method import WeightsOut
from fusecli.fusion.methods.attention.plan import Plan, Sizes, samples_within

POOLS = ("mean", "max", "first")


def pool_tokens(
    rows: NDArray[np.float32], mask: NDArray[np.bool_] | None, how: str
) -> NDArray[np.float32]:
    """One vector for the tokens of each sample.

    Args:
        rows: `[n, T, D]`.
        mask: `[n, T]` or `[1, T]`, true for real tokens; None if all are.
        how: "mean" or "max" over the real tokens, or the "first" real one.

    Returns:
        `[n, D]`; zero where no token is real.
    """
    pooled: NDArray[np.float32]
    if mask is None or mask.all():
        if how == "mean":
            pooled = rows.mean(axis=1)
        else:
            pooled = rows.max(axis=1) if how == "max" else rows[:, 0].copy()
        return pooled
    mask = np.broadcast_to(mask, rows.shape[:2])
    if how == "first":
        pooled = rows[np.arange(len(rows)), mask.argmax(axis=1)]
    elif how == "mean":
        # What is stored in padding, NaN included, must not matter.
        total = np.where(mask[..., None], rows, np.float32(0)).sum(axis=1)
        pooled = total / np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
    else:
        pooled = np.where(mask[..., None], rows, np.float32(-np.inf)).max(axis=1)
    return np.where(mask.any(axis=1, keepdims=True), pooled, np.float32(0))


class PooledFusion:
    """Concat or sum of each token of one side with the mean of the other.

    Args:
        config: of method concat or sum.
        weights: all its parameters; none without a projection.
        direction: the side that asks.
        device: auto (the CPU), cpu, cuda, cuda:i or mps.
        dtype: float32, bfloat16 or float16.
        engine: auto (numpy where it can), numpy or torch.

    Raises:
        DeviceError: the device is not there.
    """

    plan: Plan | None = None

    def __init__(
        self,
        config: FusionConfig,
        weights: Mapping[str, NDArray[np.float32]],
        direction: str,
        device: str,
        dtype: str,
        engine: str,
    ) -> None:
        self.config, self.direction = config, direction
        self._arrays: NumpyArrays | TorchArrays
        if engine != "torch" and device in ("auto", "cpu") and dtype == "float32":
            self._arrays, self.device, self.threads = NumpyArrays(), "cpu", numpy_threads()
        else:
            import torch

            self.device = resolve_device("cpu" if device == "auto" else device)
            self._arrays, self.threads = TorchArrays(self.device, dtype), torch.get_num_threads()
        self.engine = self._arrays.name
        self._own, self._other, self._bias = self._layers(weights)

    def _layers(self, weights: Mapping[str, NDArray[np.float32]]) -> tuple[Any, Any, Any]:
        """A, B and c; None where nothing is projected."""
        c = self.config
        if not c.projected:
            return None, None, None
        if c.method == "concat":
            text, image = np.split(weights["projection.weight"], [c.text_dim], axis=1)
            bias = weights["projection.bias"]
        else:
            alpha, rest = np.float32(c.alpha), np.float32(1 - c.alpha)
            text, image = alpha * weights["text_proj.weight"], rest * weights["image_proj.weight"]
            bias = alpha * weights["text_proj.bias"] + rest * weights["image_proj.bias"]
        own, other = (text, image) if self.direction == "text" else (image, text)
        load = self._arrays.load
        return load(np.ascontiguousarray(own)), load(np.ascontiguousarray(other)), load(bias)

    @property
    def workers(self) -> int:
        """On torch, which uses all cores for one call, one computes while another reads."""
        return self.threads if self.engine == "numpy" else 2

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        many = self.engine == "numpy" and workers > 1 and self.config.projected
        return one_thread_a_product() if many else nullcontext()

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        s = sizes
        T = s.T if self.direction == "text" else s.P
        each = 4 * (2 * (s.P * s.Di + s.T * s.Dt) + 3 * T * s.D)
        return samples_within(each, T, s.N, max_memory, self.workers)

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: WeightsOut | None = None,
    ) -> NDArray[np.float32]:
        x, y, x_mask, y_mask = text, image, text_mask, image_mask
        if self.direction == "image":
            x, y, x_mask, y_mask = image, text, image_mask, text_mask
        n, arrays = max(len(x), len(y)), self._arrays
        with np.errstate(over="ignore", invalid="ignore"):
            mean = pool_tokens(y, y_mask, "mean")  # [n, .], or [1, .] of a side that serves all
            made = self._fused(arrays.load(x), arrays.load(mean), n)  # [n, T, D]
        fused = arrays.unload(made)
        return fused if x_mask is None else np.where(x_mask[..., None], fused, np.float32(0))

    def _fused(self, x: Any, mean: Any, n: int) -> Any:
        T, config = x.shape[1], self.config
        if config.projected:
            rows = (x.reshape(len(x) * T, -1) @ self._own.T).reshape(len(x), T, -1)
            return rows + (mean @ self._other.T + self._bias)[:, None]
        if config.method == "sum":
            own = config.alpha if self.direction == "text" else 1 - config.alpha
            return own * x + ((1 - own) * mean)[:, None]
        made = self._arrays.fresh(n, T, config.embed_dim)
        left, right = (x, mean[:, None]) if self.direction == "text" else (mean[:, None], x)
        made[..., : config.text_dim] = left
        made[..., config.text_dim :] = right
        return made
