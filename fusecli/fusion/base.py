"""What every fusion method builds: a `Fusion`, which fuses chunks of pairs, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.literals import Dtype, Engine, ScoreOrder, Side, ValueOrder
from fusecli.fusion.settings import FusionSettings, Sizes
from fusecli.records import record

# Loads parameters by name; the slice says which rows of each are wanted.
LoadWeights = Callable[[Mapping[str, slice]], Mapping[str, NDArray[np.float32]]]

CHUNK_ROWS = 512  # products over fewer rows run at a lower rate
SMALL_CHUNK_BYTES = 16 << 20  # below this a larger chunk costs nothing
CHUNK_BYTES = 96 << 20  # no chunk takes more, unless one sample does


class WeightsOut(Protocol):
    """Receives attention weights `[., H, T, P]` in several parts: a list, or an object that
    writes each part, so that they are never in memory all at once."""

    def append(self, part: Any, /) -> None: ...


@record
class Computing:
    """Where and in what a fusion computes, and for which side.

    Attributes:
        direction: the query side, whose tokens get a fused vector each.
        device: auto, cpu, cuda, cuda:i or mps.
        dtype: the type to compute in.
        engine: auto, numpy or torch.
        row_stable: no pair's result may depend on the pairs it is fused with, to the last bit,
            where the machine's kernels allow it.
        layer: whose attention weights are handed out, from 0; -1 is the last one.
    """

    direction: Side = "text"
    device: str = "auto"
    dtype: Dtype = "float32"
    engine: Engine = "auto"
    row_stable: bool = False
    layer: int = -1

    @property
    def fits_numpy(self) -> bool:
        """Whether numpy can compute this, and torch was not chosen by an option."""
        on_cpu = self.device in ("auto", "cpu") and self.dtype == "float32"
        return on_cpu and self.engine != "torch"


@record
class Plan:
    """One order of the matrix products of attention.

    Attributes:
        scores: "projected", "query", "key", or "none" for one image token.
        values: "projected", "context", "output", or "none" for one image token.
        fold_query, fold_key, fold_value: that layer is folded with the projection before it.
        fold_output: with one image token, the whole way from image to result is one matrix.
        multiply_adds: of the job, folding included (each once).
        plain: multiply-adds of the plain module for the same job.
        cost: multiply-adds weighed by what each kind takes; the order with the least is chosen.
    """

    scores: ScoreOrder
    values: ValueOrder
    fold_query: bool
    fold_key: bool
    fold_value: bool
    fold_output: bool
    multiply_adds: int
    plain: int
    cost: float

    @property
    def why(self) -> str:
        """The choice in words, for the report."""
        share = self.plain / max(self.multiply_adds, 1)
        saved = f"{share:.1f} times fewer multiply-adds than the plain module"
        if share < 1.05:
            saved = "as many multiply-adds as the plain module"
        if self.scores == "none":
            how = "one image token: its weight is 1, so neither query nor key is formed"
        else:
            score = {
                "projected": "query and key projected",
                "query": "key weights taken into the query (no key is formed)",
                "key": "query weights taken into the key (no query is formed)",
            }[self.scores]
            value = {
                "projected": "values projected",
                "context": "attention over the image as it is, value weights after (no value)",
                "output": "output weights taken into the values",
            }[self.values]
            how = f"{score}; {value}"
        return f"{how}; {saved}"


class Fusion(Protocol):
    """Fuses chunks of pairs, whatever the method.

    Several threads may call `fuse` at once; how many are useful is `workers`.

    Attributes:
        config: its sizes and switches.
        direction: the query side, whose tokens get a fused vector each.
        engine: "numpy" or "torch".
        device: where it computes, as torch names it.
        threads: that products use.
        row_stable: a pair's result does not depend on the pairs it is fused with, to the last
            bit.
        plan: the order of products; None for methods that have no choice of it.
        gives_weights: `fuse` can hand out attention weights.
    """

    config: FusionSettings
    direction: Side
    engine: Engine
    device: str
    threads: int
    row_stable: bool
    gives_weights: bool

    @property
    def plan(self) -> Plan | None: ...

    @property
    def workers(self) -> int:
        """Threads that may take chunks at once."""

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        """Context manager for `workers` concurrent calls of `fuse`."""

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
        attention_mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Fuse n pairs of equal shape, each by itself.

        Args:
            image: `[n, P, Di]`, or `[1, P, Di]` for one image for all; masked tokens are zero.
            text: `[n, T, Dt]`, or `[1, T, Dt]` for one text for all; masked tokens are zero.
            image_mask: `[n, P]` or `[1, P]`, true for real tokens; None if all are real.
            text_mask: `[n, T]` or `[1, T]`. Masked rows of the result are zero; a context side
                without a real token gives a context of zero.
            weights_out: receives the attention weights, float32 `[., H, T, P]`, in several parts
                in the order of the pairs, where `gives_weights`; with one image for all the shape
                is `[1, H, n T, P]`. Masked text tokens and images without a real token have
                weights too, which mean nothing. Asking for weights does not change the result.
            attention_mask: `[T, P]` or `[n, T, P]`, true where a text token may attend to an
                image token (direction "image": the image token to the text token). Only for
                methods with attention.

        Returns:
            `[n, T, D]` (direction "image": `[n, P, D]`), in memory of its own. Not checked to
            be finite.
        """


def samples_within(each: int, rows: int, N: int, max_memory: int | None, workers: int) -> int:
    """Samples to compute at once: enough for large products, few enough for the cache.

    Args:
        each: bytes that one sample takes.
        rows: of the smallest product of one sample.
        N: samples of the job.
        max_memory: a bound in bytes that the user set for all chunks in memory, or None.
        workers: chunks in work at once.
    """
    budget = CHUNK_BYTES if max_memory is None else min(CHUNK_BYTES, max_memory // workers)
    wanted = max(-(-CHUNK_ROWS // rows), SMALL_CHUNK_BYTES // each)
    return max(1, min(N, wanted, budget // each))
