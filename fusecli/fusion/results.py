"""What a job gives: which tensors, of which shapes, and how a chunk of each is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusecli.features.pair_shapes import PairShapes
from fusecli.features.writer import FUSED_KEY
from fusecli.fusion.base import Fusion, WeightsOut
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import BOTH as BOTH
from fusecli.fusion.literals import SIDES, Direction, Pool, Side
from fusecli.records import record


@record
class ResultTensor:
    """One tensor of the output.

    Attributes:
        key: its name in a file that has names.
        letters, shape: its axes.
    """

    key: str
    letters: str
    shape: tuple[int, ...]


def query_sides(direction: Direction) -> tuple[Side, ...]:
    """The sides whose tokens get a fused vector, the text first."""
    return SIDES if direction == BOTH else tuple(side for side in SIDES if side == direction)


def count_nonfinite(numbers: NDArray[np.float32]) -> int:
    """How many numbers of an array are NaN or infinity."""
    finite = np.isfinite(numbers)
    return 0 if finite.all() else numbers.size - int(np.count_nonzero(finite))


def result_tensors(
    shapes: PairShapes, config: FusionConfig, direction: Direction, pool: Pool | None
) -> list[ResultTensor]:
    """The tensors a job writes, in the order in which `fuse_chunk` gives them.

    Args:
        shapes: of the job.
        config: its fusion.
        direction: "text", "image" or "both".
        pool: how tokens are pooled to one more vector a pair, or None.
    """
    tensors = []
    for side in query_sides(direction):
        suffix = f"_{side}" if direction == BOTH else ""
        letters, shape = shapes.output_letters_of(side), shapes.output_shape(config.embed_dim, side)
        tensors.append(ResultTensor(f"{FUSED_KEY}{suffix}", letters, shape))
        if pool is not None:
            kept = [i for i, letter in enumerate(letters) if letter in "ND"]
            tensors.append(
                ResultTensor(
                    f"pooled{suffix}",
                    "".join(letters[i] for i in kept),
                    tuple(shape[i] for i in kept),
                )
            )
    return tensors


@record
class PairChunk:
    """n pairs of equal shape, to be fused at once; the fields are as for `Fusion.fuse`."""

    image: NDArray[np.float32]
    text: NDArray[np.float32]
    image_mask: NDArray[np.bool_] | None = None
    text_mask: NDArray[np.bool_] | None = None
    attention_mask: NDArray[np.bool_] | None = None

    def first(self, n: int) -> PairChunk:
        """Its first n pairs."""
        parts = (
            None if part is None else part[:n]
            for part in (self.image_mask, self.text_mask, self.attention_mask)
        )
        return PairChunk(self.image[:n], self.text[:n], *parts)

    def fuse(self, fusion: Fusion, weights_out: WeightsOut | None) -> NDArray[np.float32]:
        """As `Fusion.fuse`."""
        masks = self.image_mask, self.text_mask
        return fusion.fuse(self.image, self.text, *masks, weights_out, self.attention_mask)


def fuse_chunk(
    fusions: Sequence[Fusion],
    pool: Pool | None,
    chunk: PairChunk,
    weights_out: WeightsOut | None = None,
) -> list[NDArray[np.float32]]:
    """Fuse n pairs of equal shape into every tensor of the result.

    Args:
        fusions: one for each query side, the text first.
        pool: as for `result_tensors`.
        chunk: the pairs.
        weights_out: receives the attention weights of the first fusion.

    Returns:
        `[n, T, D]` and, pooled, `[n, D]` for each fusion.
    """
    tensors = []
    for fusion in fusions:
        rows = chunk.fuse(fusion, weights_out)
        weights_out = None
        tensors.append(rows)
        if pool is not None:
            from fusecli.fusion.pooling import pool_tokens

            own = chunk.text_mask if fusion.direction == "text" else chunk.image_mask
            tensors.append(pool_tokens(rows, own, pool))
    return tensors
