"""A built fusion: config, weights and engine together, ready to be handed chunks of pairs.

`Fusion` is what every method has; attention is here, the others in `pooled.py` and
`transformer.py`.

Everything that fuses (`fuse.py`, `batch.py`, `bench.py`) goes through `build_fusion` and calls
`fuse`; what a method computes is its own affair. The letters are in `shapes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
from fusecli.fusion.backend.arrays import NumpyArrays, TorchArrays
from fusecli.fusion.backend.device import (
    accelerator_likely,
    cores,
    numpy_threads,
    one_thread_a_product,
    resolve_device,
)
from fusecli.fusion.backend.row_stable import RowStableArrays, is_row_stable
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods.attention.method import WeightsOut, attend
from fusecli.fusion.methods.attention.operands import Arrays, Operands, needed_parameters, prepare
from fusecli.fusion.methods.attention.plan import (
    Plan,
    Sizes,
    choose_plan,
    chunk_samples,
    worth_an_accelerator,
)
from fusecli.fusion.methods.pooled import PooledFusion
from fusecli.fusion.methods.transformer import DecoderFusion

LoadWeights = Callable[[Mapping[str, slice]], Mapping[str, NDArray[np.float32]]]


class Fusion(Protocol):
    """What fuses chunks of pairs, whatever the method.

    Several threads may call `fuse` at once; how many gain by it is `workers`.

    Attributes:
        config: what it is.
        direction: "text" or "image", the side whose tokens ask and get a fused vector each.
        engine: "numpy" or "torch".
        device: where it computes, as torch names it.
        threads: that products use.
    """

    config: FusionConfig
    direction: str
    engine: str
    device: str
    threads: int

    @property
    def plan(self) -> Plan | None:
        """The order of products, which only attention has a choice of.

        Without one there are no attention weights to hand out either.
        """

    @property
    def workers(self) -> int:
        """Threads that may take chunks at once."""

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        """To be held while so many threads call `fuse`."""

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        """Samples to compute at once.

        Args:
            sizes: of the job.
            max_memory: a bound in bytes that the user set, or None.
        """

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: WeightsOut | None = None,
    ) -> NDArray[np.float32]:
        """Fuse n pairs of equal shape that do not see each other.

        Args:
            image: `[n, P, Di]`, or `[1, P, Di]` for one that serves all; masked tokens are zero.
            text: `[n, T, Dt]`; masked tokens are zero.
            image_mask: `[n, P]` or `[1, P]`, true for real tokens; None if all are.
            text_mask: `[n, T]` or `[1, T]`. Masked rows of the result are zero; a side that
                answers without a real token gives a context of zero.
            weights_out: receives the attention weights, float32 `[., H, T, P]`, some pairs after
                the other, where there is a `plan`; for one image that serves all
                `[1, H, n T, P]`. What a masked text token or an image without a real token
                would attend to is in it too. Asking does not change the result.

        Returns:
            `[n, T, D]` (direction "image": `[n, P, D]`), in memory of its own. Not checked to
            be finite.
        """


class AttentionFusion:
    """Cross-attention in the order of products that its plan says.

    Several threads may call `fuse` at once. On numpy each then computes for itself, in
    workspace of its own; on torch, which uses all cores (or a GPU) for one call, they take turns.

    Args:
        operands: its weights, folded and placed; the side that asks is their text.
        arrays: the engine.
        device: where it computes, as torch names it.
        threads: that products use.
        direction: the side that asks.
        gate: what attention is multiplied by before the asking side is added; None without.

    Attributes:
        row_stable: a pair's result does not depend on the pairs it is fused with, to the last bit.
    """

    def __init__(
        self,
        operands: Operands,
        arrays: Arrays,
        device: str,
        threads: int,
        direction: str = "text",
        gate: float | None = None,
    ) -> None:
        self.operands, self.device, self.threads = operands, device, threads
        self.direction, self.gate, self.plan = direction, gate, operands.plan
        self.config = operands.config if direction == "text" else _turned(operands.config)
        self.engine = arrays.name
        self.row_stable = isinstance(arrays, RowStableArrays)
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

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        if self.direction == "image":
            sizes = _turned_sizes(sizes)
        return chunk_samples(sizes, self.plan, max_memory, self.workers)

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
            if len(x) < len(y):  # every text is asked by the same image
                x = np.repeat(x, len(y), axis=0)
        n, T, Dt = x.shape
        rows = x
        if len(y) < n:
            # The same image for all: their texts are one long text.
            rows = x.reshape(1, n * T, Dt)
        real = None
        if y_mask is not None and not y_mask.all():
            real = np.ascontiguousarray(np.broadcast_to(y_mask, y.shape[:2]))
        with self._turn, np.errstate(over="ignore", invalid="ignore"):
            try:
                arrays = self._idle.pop()
            except IndexError:
                arrays = RowStableArrays() if self.row_stable else NumpyArrays()
            fused = attend(
                self.operands,
                arrays.load(y),
                arrays.load(rows),
                arrays,
                None if real is None else arrays.load(real),
                None if weights_out is None else _Unloading(arrays, weights_out),
            )
            made = arrays.unload(fused).reshape(n, T, -1)
            arrays.release("fused")
            self._idle.append(arrays)
            if self.gate is not None:
                made *= np.float32(self.gate)
                made += x
        return made if x_mask is None else np.where(x_mask[..., None], made, np.float32(0))


@dataclass
class _Unloading:
    """Brings weights from the engine to where they are wanted, part by part."""

    arrays: Arrays
    wanted: WeightsOut

    def append(self, part: Any) -> None:
        self.wanted.append(self.arrays.unload(part))


def build_fusion(
    config: FusionConfig,
    load: LoadWeights,
    sizes: Sizes,
    *,
    direction: str = "text",
    device: str = "auto",
    dtype: str = "float32",
    engine: str = "auto",
    row_stable: bool = False,
) -> Fusion:
    """Choose order and engine for a job, and load, fold and place the weights it needs.

    Args:
        config: what to build.
        load: gives the parameters that are asked for, and of each the rows.
        sizes: of the whole job.
        direction: "text" or "image", the side that asks.
        device: auto, cpu, cuda, cuda:i or mps.
        dtype: float32, bfloat16 or float16.
        engine: auto, numpy or torch.
        row_stable: no pair's bits may depend on its company, where that can be had.

    Raises:
        UsageError: the method does not run so.
        DeviceError: the device is not there.
        WeightsError: a weight is NaN or infinite.
    """
    config.check_direction(direction)
    check_engine(config, engine)
    if config.method == "attention":
        return _attention(config, load, sizes, direction, device, dtype, engine, row_stable)
    weights = load(dict.fromkeys(config.parameter_shapes(), slice(None)))
    if config.method == "transformer":
        return DecoderFusion(config, weights, direction, device, dtype)
    return PooledFusion(config, weights, direction, device, dtype, engine)


def check_engine(config: FusionConfig, engine: str) -> None:
    """Raises:
    UsageError: the method does not run on that engine.
    """
    if engine == "numpy" and config.method == "transformer":
        raise UsageError("--engine numpy: --method transformer runs on torch only")


def _attention(
    config: FusionConfig,
    load: LoadWeights,
    sizes: Sizes,
    direction: str,
    device: str,
    dtype: str,
    engine: str,
    row_stable: bool,
) -> AttentionFusion:
    asked = config
    names: dict[str, str] = {}
    if direction == "image":
        # The image asks with the layers of its own side: everything is as if it were the text.
        asked = _turned(config)
        sizes = _turned_sizes(sizes)
        for part in ("weight", "bias"):
            pair = f"text_proj.{part}", f"image_proj.{part}"
            names |= dict([pair, pair[::-1]])
    plan = choose_plan(sizes, dtype=dtype)
    arrays, device, threads = _choose_engine(plan, device, dtype, engine)
    needed = needed_parameters(asked, plan)
    loaded = load({names.get(name, name): rows for name, rows in needed.items()})
    weights = {name: loaded[names.get(name, name)] for name in needed}
    gate = math.tanh(weights["gate"][0]) if config.gate else None
    operands = prepare(weights, asked, plan, arrays)
    if row_stable and isinstance(arrays, NumpyArrays) and is_row_stable(operands.matrices):
        arrays = RowStableArrays()
    return AttentionFusion(operands, arrays, device, threads, direction, gate)


def _turned(config: FusionConfig) -> FusionConfig:
    return replace(config, image_dim=config.text_dim, text_dim=config.image_dim)


def _turned_sizes(s: Sizes) -> Sizes:
    return replace(s, T=s.P, P=s.T, Dt=s.Di, Di=s.Dt)


def _choose_engine(plan: Plan, device: str, dtype: str, engine: str) -> tuple[Arrays, str, int]:
    possible = device in ("auto", "cpu") and dtype == "float32"
    if device == "auto" and accelerator_likely() and worth_an_accelerator(plan, cores()):
        possible = False
    if engine == "numpy" or (engine == "auto" and possible):
        return NumpyArrays(), "cpu", numpy_threads()
    import torch

    device = resolve_device(device)
    return TorchArrays(device, dtype), device, torch.get_num_threads()
