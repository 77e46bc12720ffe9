"""What concat, sum and bilinear share: each token of the query side meets the mean of the other.

The mean of the context side's real tokens is formed in float32 before any narrower type, once
for each pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
from fusecli.fusion.backend.arrays import Array, ArrayBackend, NumpyArrays, TorchArrays
from fusecli.fusion.backend.device import (
    numpy_threads,
    one_thread_a_product,
    resolve_device,
    set_torch_threads,
)
from fusecli.fusion.base import Computing, LoadWeights, Plan, WeightsOut, samples_within
from fusecli.fusion.literals import Side
from fusecli.fusion.method import Stage, TokenSide
from fusecli.fusion.methods import no_attention
from fusecli.fusion.pooling import pool_tokens
from fusecli.fusion.settings import FusionSettings, Sizes


def mean_stage(N: int, context: TokenSide) -> Stage:
    """The mean of the context side, `[N, .]`, for the list of stages."""
    return Stage(f"mean {context.name}", f"N, {context.width_letters}", (N, context.width), True)


def times(rows: Array, weight: Array) -> Array:
    """`[n, T, in]` by `[out, in]` to `[n, T, out]`, as one product."""
    n, T = rows.shape[:2]
    return (rows.reshape(n * T, -1) @ weight.T).reshape(n, T, -1)


class PooledFusion(ABC):
    """Fuses each token of the query side with one vector of the context side.

    A subclass keeps its weights in `place` and computes the fused rows in `combine`.

    Args:
        config: the fusion.
        load: gives its parameters.
        names: of all its parameters.
        computing: where and in what; device auto is the CPU.

    Raises:
        DeviceError: the device is not on this machine.
    """

    plan: Plan | None = None
    row_stable = False
    gives_weights = False

    def __init__(
        self, config: FusionSettings, load: LoadWeights, names: list[str], computing: Computing
    ) -> None:
        self.config: FusionSettings = config
        self.direction: Side = computing.direction
        self.arrays: ArrayBackend
        if computing.fits_numpy:
            self.arrays, self.device, self.threads = NumpyArrays(), "cpu", numpy_threads()
        else:
            import torch

            device = "cpu" if computing.device == "auto" else computing.device
            self.device, self.threads = resolve_device(device), torch.get_num_threads()
            self.arrays = TorchArrays(self.device, computing.dtype)
        self.engine = self.arrays.name
        self._has_products = bool(names)
        self.place(load(dict.fromkeys(names, slice(None))))

    @abstractmethod
    def place(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep the weights where `combine` computes with them; `load_all` brings them there."""

    @abstractmethod
    def combine(self, x: Array, context: Array, n: int) -> Array:
        """The fused rows.

        Args:
            x: the query side, `[n, T, .]`, or `[1, T, .]` for one text for all.
            context: `[n, .]`, or `[1, .]` for one for all.
            n: samples.

        Returns:
            `[n, T, D]`.
        """

    def context(
        self, y: NDArray[np.float32], mask: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        """The context side `[n, P, .]` as one vector a sample, `[n, .]`."""
        return pool_tokens(y, mask, "mean")

    def load_all(self, *arrays: NDArray[np.float32]) -> list[Array]:
        """Bring weights to the device."""
        return [self.arrays.load(np.ascontiguousarray(array)) for array in arrays]

    def place_both(
        self,
        text: NDArray[np.float32],
        image: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        """Keep the weights of `project_both`: `[D, Dt]`, `[D, Di]` and `[D]`."""
        query, context = (text, image) if self.direction == "text" else (image, text)
        self._query, self._context, self._bias = self.load_all(query, context, bias)

    def project_both(self, x: Array, context: Array) -> Array:
        """`Q x + (C m + b)`, the bracket once a pair.

        Args:
            x: the query side, `[n, T, .]`.
            context: m, the mean of the context side, `[n, .]`.
        """
        return times(x, self._query) + (context @ self._context.T + self._bias)[:, None]

    @property
    def workers(self) -> int:
        """On torch, which uses all cores for one call, one computes while another reads."""
        return self.threads if self.engine == "numpy" else 2

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        many = self.engine == "numpy" and workers > 1 and self._has_products
        return one_thread_a_product() if many else nullcontext()

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        T = sizes.T if self.direction == "text" else sizes.P
        features = sizes.P * sizes.Di + sizes.T * sizes.Dt
        each = 4 * (2 * features + self.floats_a_row() * T)
        return samples_within(each, T, sizes.N, max_memory, self.workers)

    def floats_a_row(self) -> int:
        """Numbers that one query token takes in memory besides its features."""
        return 3 * self.config.embed_dim

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: WeightsOut | None = None,
        attention_mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        if attention_mask is not None:
            raise UsageError(no_attention("an attention mask", self.config.method))
        x, y, x_mask, y_mask = text, image, text_mask, image_mask
        if self.direction == "image":
            x, y, x_mask, y_mask = image, text, image_mask, text_mask
        if self.engine == "torch":
            set_torch_threads(self.threads)
        with np.errstate(over="ignore", invalid="ignore"):
            context = self.context(y, y_mask)
            rows = self.combine(self.arrays.load(x), self.arrays.load(context), max(len(x), len(y)))
        fused = self.arrays.unload(rows)
        return fused if x_mask is None else np.where(x_mask[..., None], fused, np.float32(0))
