"""Matrix products in which the bits of a row do not depend on the other rows.

A matrix library divides a product by its number of rows, and the position of a row decides which
code computes it. So the last bits of a pair's result would depend on the pairs that are computed
with it. Here a product is divided into blocks of a few fixed sizes; the last block is filled up
with zeros. The sizes are found by a probe, once for each shape of weights: a size is used if every
row gets the same bits at every position. If no size passes (OpenBLAS kernels for processors without
AVX-512), the caller has to compute each pair by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import Array, NumpyArrays

# Rows of a block. Large blocks run at the full rate; small ones take the remaining rows.
_BLOCKS = (192, 48, 16, 8)
_PROBED = 512  # numbers that the probe compares


class RowStableArrays(NumpyArrays):
    """float32 on the CPU. Use it only if `is_row_stable` is true for all weights."""

    def linear(self, name: str, rows: Array, weight: Array, bias: Array | None) -> Array:
        """`[R, in]` by `[out, in]` to `[R, out]`."""
        out = self.workspace(name, rows.shape[0], weight.shape[0])
        for block, part in _cuts(rows.shape[0], blocks_of(weight.shape)):
            if len(rows[part]) == block:
                np.matmul(rows[part], weight.T, out=out[part])
            else:
                out[part] = (self._filled(rows[part], block) @ weight.T)[: len(rows[part])]
        if bias is not None:
            out += bias
        return out

    def per_head(self, name: str, rows: Array, weight: Array) -> Array:
        """`[R, H, a]` by `[H, a, b]` to `[R, H, b]`, head by head."""
        out = self.workspace(name, rows.shape[0], rows.shape[1], weight.shape[2])
        for block, part in _cuts(rows.shape[0], blocks_of(weight.shape)):
            if len(rows[part]) == block:
                np.matmul(rows[part].swapaxes(0, 1), weight, out=out[part].swapaxes(0, 1))
            else:
                filled = self._filled(rows[part], block)
                product = np.matmul(filled.swapaxes(0, 1), weight)
                out[part] = product.swapaxes(0, 1)[: len(rows[part])]
        return out

    def _filled(self, rows: Array, block: int) -> Array:
        filled = self.workspace("filled", block, *rows.shape[1:])
        filled[: len(rows)] = rows
        filled[len(rows) :] = 0
        return filled


def is_row_stable(weights: Iterable[Array]) -> bool:
    """Whether products with these weights can be row-stable on this machine.

    Args:
        weights: of all layers. Vectors are only added, so they do not matter.
    """
    return all(weight.ndim < 2 or blocks_of(weight.shape) for weight in weights)


@lru_cache(256)
def blocks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of blocks that give every row the same bits, the largest first; may be empty.

    Args:
        shape: of the weights, `[out, in]` or `[H, a, b]`.
    """
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, np.float32)
    flat = len(shape) == 2
    width, out_width = (shape[1], shape[0]) if flat else (shape[0] * shape[1], shape[0] * shape[2])
    tries = rng.standard_normal((max(1, _PROBED // out_width), width), np.float32)
    product = _linear if flat else _per_head
    # By size of block: the results of the probe, None if they differ between positions.
    results: dict[int, NDArray[Any] | None] = {}
    for block in _BLOCKS:
        rows = np.stack([product(np.tile(row, (block, 1)), weight) for row in tries])
        results[block] = rows[:, 0] if (rows == rows[:, :1]).all() else None
    for first in results.values():
        if first is not None:
            same = (b for b, rows in results.items() if rows is not None and (rows == first).all())
            return tuple(same)
    return ()


def _linear(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows @ weight.T


def _per_head(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    H, a, b = weight.shape
    out = np.empty((len(rows), H, b), np.float32)
    heads = rows.reshape(-1, H, a).swapaxes(0, 1)
    np.matmul(heads, weight, out=out.swapaxes(0, 1))
    return out.reshape(len(rows), H * b)


def _cuts(rows: int, blocks: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Each block with its slice of rows; the last block may have fewer rows than its size."""
    start = 0
    for block in blocks:
        while rows - start >= block or (block == blocks[-1] and start < rows):
            yield block, slice(start, min(start + block, rows))
            start += block
