"""A built fusion: config, weights and engine together, ready to be handed chunks of pairs.

Everything that fuses (`fuse.py`, `batch.py`, `bench.py`) goes through `build_fusion` and calls
`fuse`; what a method computes is its own affair. The letters are in `shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.arrays import NumpyArrays, TorchArrays
from fusecli.attention import attend
from fusecli.config import FusionConfig
from fusecli.device import (
    accelerator_likely,
    cores,
    numpy_threads,
    one_thread_a_product,
    resolve_device,
)
from fusecli.operands import Arrays, Operands, needed_parameters, prepare
from fusecli.plan import Plan, Sizes, choose_plan, worth_an_accelerator

LoadWeights = Callable[[Mapping[str, slice]], Mapping[str, NDArray[np.float32]]]


class AttentionFusion:
    """Cross-attention in the order of products that its plan says.

    Several threads may call `fuse` at once. On numpy each then computes for itself, in
    workspace of its own; on torch, which uses all cores (or a GPU) for one call, they take turns.

    Args:
        operands: its weights, folded and placed.
        arrays: the engine.
        device: where it computes, as torch names it.
        threads: that products use.
    """

    def __init__(self, operands: Operands, arrays: Arrays, device: str, threads: int) -> None:
        self.operands, self.device, self.threads = operands, device, threads
        self.config, self.plan = operands.config, operands.plan
        self.engine = arrays.name
        self._idle: list[Arrays] = [arrays]
        self._turn: AbstractContextManager[object] = nullcontext() if self._many else Lock()

    @property
    def _many(self) -> bool:
        return self.engine == "numpy"

    @property
    def workers(self) -> int:
        """Threads that may take chunks at once: on torch one computes while another reads."""
        return self.threads if self._many else 2

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        """While several threads call `fuse`: a product takes one core and leaves the others."""
        return one_thread_a_product() if self._many and workers > 1 else nullcontext()

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: list[NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Fuse n pairs of equal shape that do not see each other.

        Args:
            image: `[n, P, Di]`, or `[1, P, Di]` for one that serves all; masked tokens are zero.
            text: `[n, T, Dt]`; masked tokens are zero.
            image_mask: `[n, P]` or `[1, P]`, true for real tokens; None if all are.
            text_mask: `[n, T]` or `[1, T]`; masked rows of the result are zero.
            weights_out: a list that receives the attention weights `[., H, T, P]`, some pairs
                after the other. Asking does not change the result.

        Returns:
            `[n, T, D]`, in memory of its own. Not checked to be finite.
        """
        n, T, Dt = text.shape
        if len(image) < n:
            # The same image for all: their texts are one long text.
            text = text.reshape(1, n * T, Dt)
        real = None
        if image_mask is not None and not image_mask.all():
            real = np.ascontiguousarray(np.broadcast_to(image_mask, image.shape[:2]))
        weights: list[Any] = []
        with self._turn, np.errstate(over="ignore", invalid="ignore"):
            try:
                arrays = self._idle.pop()
            except IndexError:
                arrays = NumpyArrays()
            fused = attend(
                self.operands,
                arrays.load(image),
                arrays.load(text),
                arrays,
                None if real is None else arrays.load(real),
                None if weights_out is None else weights,
            )
            rows = arrays.unload(fused).reshape(n, T, -1)
            if weights_out is not None:
                weights_out += [arrays.unload(part) for part in weights]
            arrays.release("fused")
            self._idle.append(arrays)
        return rows if text_mask is None else np.where(text_mask[..., None], rows, np.float32(0))


def build_fusion(
    config: FusionConfig,
    load: LoadWeights,
    sizes: Sizes,
    *,
    device: str = "auto",
    dtype: str = "float32",
    engine: str = "auto",
) -> AttentionFusion:
    """Choose order and engine for a job, and load, fold and place the weights it needs.

    Args:
        config: what to build.
        load: gives the parameters that are asked for, and of each the rows.
        sizes: of the whole job.
        device: auto, cpu, cuda, cuda:i or mps.
        dtype: float32, bfloat16 or float16.
        engine: auto, numpy or torch.

    Raises:
        DeviceError: the device is not there.
        WeightsError: a weight is NaN or infinite.
    """
    plan = choose_plan(sizes, dtype=dtype)
    arrays, device, threads = _choose_engine(plan, device, dtype, engine)
    operands = prepare(load(needed_parameters(config, plan)), config, plan, arrays)
    return AttentionFusion(operands, arrays, device, threads)


def _choose_engine(plan: Plan, device: str, dtype: str, engine: str) -> tuple[Arrays, str, int]:
    possible = device in ("auto", "cpu") and dtype == "float32"
    if device == "auto" and accelerator_likely() and worth_an_accelerator(plan, cores()):
        possible = False
    if engine == "numpy" or (engine == "auto" and possible):
        return NumpyArrays(), "cpu", numpy_threads()
    import torch

    device = resolve_device(device)
    return TorchArrays(device, dtype), device, torch.get_num_threads()
