"""Attention for chunks of pairs: masks, directions, threads, and the choice of the engine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import ArrayBackend, NumpyArrays, TorchArrays
from fusecli.fusion.backend.device import (
    accelerator_likely,
    cores,
    numpy_threads,
    one_thread_a_product,
    resolve_device,
    set_torch_threads,
)
from fusecli.fusion.backend.row_stable import RowStableArrays, is_row_stable
from fusecli.fusion.base import Computing, LoadWeights, Plan, WeightsOut
from fusecli.fusion.literals import Side
from fusecli.fusion.methods.attention.operands import Operands, needed_parameters, prepare
from fusecli.fusion.methods.attention.plan import (
    choose_plan,
    chunk_samples,
    worth_an_accelerator,
)
from fusecli.fusion.methods.attention.products import attend
from fusecli.fusion.settings import FusionSettings, Sizes
from fusecli.records import open_record


class AttentionFusion:
    """Cross-attention in the order of products that its plan says.

    Several threads may call `fuse` at once. On numpy each then computes for itself, in
    workspace of its own; on torch, which uses all cores (or a GPU) for one call, they take turns.

    Args:
        operands: its weights, folded and placed; the query side is their text.
        arrays: the engine.
        device: where it computes, as torch names it.
        threads: that products use.
        direction: the query side.
        gate: what attention is multiplied by before the query side is added; None without.

    Attributes:
        row_stable: a pair's result does not depend on the pairs it is fused with, to the last bit.
    """

    gives_weights = True

    def __init__(
        self,
        operands: Operands,
        arrays: ArrayBackend,
        device: str,
        threads: int,
        direction: Side = "text",
        gate: float | None = None,
    ) -> None:
        self.operands, self.device, self.threads = operands, device, threads
        self.direction, self.gate = direction, gate
        self.config = operands.config if direction == "text" else _swapped(operands.config)
        self.engine = arrays.name
        self.row_stable = isinstance(arrays, RowStableArrays)
        self._idle: list[ArrayBackend] = [arrays]
        self._turn: AbstractContextManager[object] = nullcontext() if self._many else Lock()

    @property
    def plan(self) -> Plan:
        return self.operands.plan

    @property
    def _many(self) -> bool:
        return self.engine == "numpy"

    @property
    def workers(self) -> int:
        """Threads that may take chunks at once: on torch one computes while another reads."""
        return self.threads if self._many else 2

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        """While several threads call `fuse`, a product takes one core and leaves the others."""
        return one_thread_a_product() if self._many and workers > 1 else nullcontext()

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        if self.direction == "image":
            sizes = _swapped_sizes(sizes)
        return chunk_samples(sizes, self.plan, max_memory, self.workers)

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: WeightsOut | None = None,
        attention_mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        x, y, x_mask, y_mask = text, image, text_mask, image_mask
        if self.direction == "image":
            x, y, x_mask, y_mask = image, text, image_mask, text_mask
            attention_mask = None if attention_mask is None else attention_mask.swapaxes(-1, -2)
        if len(x) < len(y):  # one query side for all
            x = np.repeat(x, len(y), axis=0)
        n, T, Dt = x.shape
        taking_part = _taking_part(n, T, y, y_mask, attention_mask)
        rows = x
        if len(y) < n:
            # One image for all: their texts are one long text.
            rows = x.reshape(1, n * T, Dt)
        with self._turn, np.errstate(over="ignore", invalid="ignore"):
            if self.engine == "torch":
                set_torch_threads(self.threads)
            try:
                arrays = self._idle.pop()
            except IndexError:
                arrays = RowStableArrays() if self.row_stable else NumpyArrays()
            fused = attend(
                self.operands,
                arrays.load(y),
                arrays.load(rows),
                arrays,
                None if taking_part is None else arrays.load(taking_part),
                None if weights_out is None else _Unloading(arrays, weights_out),
            )
            result = arrays.unload(fused).reshape(n, T, -1)
            arrays.detach("fused")
            self._idle.append(arrays)
            if self.gate is not None:
                result *= np.float32(self.gate)
                result += x
        return result if x_mask is None else np.where(x_mask[..., None], result, np.float32(0))


def _taking_part(
    n: int,
    T: int,
    y: NDArray[np.float32],
    y_mask: NDArray[np.bool_] | None,
    attention_mask: NDArray[np.bool_] | None,
) -> NDArray[np.bool_] | None:
    """The tokens of y `[n or 1, P, .]` that take part, as `attend` wants them.

    Args:
        n, T: samples and query tokens.
        y: the context side.
        y_mask: `[n, P]`, `[1, P]` or None.
        attention_mask: `[T, P]`, `[n, T, P]` or None.

    Returns:
        `[len(y), P]`; with an attention mask `[len(y), T, P]`, or `[1, n T, P]` for one y
        for all samples; None where all tokens take part.
    """
    if attention_mask is None:
        if y_mask is None or y_mask.all():
            return None
        return np.ascontiguousarray(np.broadcast_to(y_mask, y.shape[:2]))
    P = y.shape[1]
    whole = np.broadcast_to(attention_mask, (n, T, P))
    if y_mask is not None:
        whole = whole & np.broadcast_to(y_mask, (n, P))[:, None]
    return np.ascontiguousarray(whole).reshape(len(y), -1, P)


@open_record
class _Unloading:
    """Brings attention weights from the engine to their receiver, part by part."""

    arrays: ArrayBackend
    receiver: WeightsOut

    def append(self, part: Any) -> None:
        self.receiver.append(self.arrays.unload(part))


def build_attention(
    config: FusionSettings,
    names: Iterable[str],
    load: LoadWeights,
    sizes: Sizes,
    computing: Computing,
) -> AttentionFusion:
    """Choose order and engine, and load, fold and place the weights.

    Args:
        config: the fusion.
        names: of all its parameters.
        load, sizes, computing: as for `Method.build`.

    Raises: as `Method.build`.
    """
    folded_for = config
    swapped: dict[str, str] = {}
    if computing.direction == "image":
        # The image is the query side and keeps its own projection: swap the two sides' names.
        folded_for = _swapped(config)
        sizes = _swapped_sizes(sizes)
        for part in ("weight", "bias"):
            pair = f"text_proj.{part}", f"image_proj.{part}"
            swapped |= dict([pair, pair[::-1]])
    plan = choose_plan(sizes, dtype=computing.dtype)
    arrays, device, threads = _choose_engine(plan, computing)
    needed = needed_parameters(folded_for, plan, names)
    loaded = load({swapped.get(name, name): rows for name, rows in needed.items()})
    weights = {name: loaded[swapped.get(name, name)] for name in needed}
    gate = math.tanh(weights["gate"][0]) if config.gate else None
    operands = prepare(weights, folded_for, plan, arrays)
    if computing.row_stable and isinstance(arrays, NumpyArrays):
        matrices = [matrix for matrix in vars(operands.matrices).values() if matrix is not None]
        # Row-stable products are run on one thread each; the probe has to be as well.
        with one_thread_a_product():
            row_stable = is_row_stable(matrices)
        if row_stable:
            arrays = RowStableArrays()
    return AttentionFusion(operands, arrays, device, threads, computing.direction, gate)


def _swapped(config: FusionSettings) -> FusionSettings:
    return replace(config, image_dim=config.text_dim, text_dim=config.image_dim)


def _swapped_sizes(sizes: Sizes) -> Sizes:
    return replace(sizes, T=sizes.P, P=sizes.T, Dt=sizes.Di, Di=sizes.Dt)


def _choose_engine(plan: Plan, computing: Computing) -> tuple[ArrayBackend, str, int]:
    possible = computing.device in ("auto", "cpu") and computing.dtype == "float32"
    if computing.device == "auto" and accelerator_likely() and worth_an_accelerator(plan, cores()):
        possible = False
    if computing.engine == "numpy" or (computing.engine == "auto" and possible):
        return NumpyArrays(), "cpu", numpy_threads()
    import torch

    device = resolve_device(computing.device)
    return TorchArrays(device, computing.dtype), device, torch.get_num_threads()
