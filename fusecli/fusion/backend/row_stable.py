"""Products over the rows of many pairs in which no row's bits depend on the others.

A matrix library splits a product by the number of its rows, and a row's place decides which code
computes it: the last bits of a pair's result would depend on the pairs it is computed with. Here a
product is made of blocks of a few fixed numbers of rows, the last one filled up with zeros. Those
numbers are found by trying, once for each shape of weights: blocks in which every row, wherever it
is, comes out the same. Where there are none (OpenBLAS' kernels for processors without AVX-512), the
caller has to leave pairs by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import Array, NumpyArrays

# Large enough that products run at their full rate, and small enough for what is left over.
_BLOCKS = (192, 48, 16, 8)
_TRIED = 512  # numbers that have to come out alike


class RowStableArrays(NumpyArrays):
    """float32 on the CPU; to be used where `is_row_stable` holds for all weights."""

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
                made = np.matmul(filled.swapaxes(0, 1), weight)
                out[part] = made.swapaxes(0, 1)[: len(rows[part])]
        return out

    def _filled(self, rows: Array, block: int) -> Array:
        filled = self.workspace("filled", block, *rows.shape[1:])
        filled[: len(rows)] = rows
        filled[len(rows) :] = 0
        return filled


def is_row_stable(weights: Iterable[Array]) -> bool:
    """Whether products with these weights can be row-stable on this machine.

    Args:
        weights: of all layers; vectors among them are only added.
    """
    return all(weight.ndim < 2 or blocks_of(weight.shape) for weight in weights)


@lru_cache(256)
def blocks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks that give every row the same bits, largest first; none where not even one does.

    Args:
        shape: of the weights, `[out, in]` or `[H, a, b]`.
    """
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, np.float32)
    flat = len(shape) == 2
    width, made = (shape[1], shape[0]) if flat else (shape[0] * shape[1], shape[0] * shape[2])
    tries = rng.standard_normal((max(1, _TRIED // made), width), np.float32)
    product = _linear if flat else _per_head
    # What every block makes of a row that fills it; None where its places differ.
    found: dict[int, NDArray[Any] | None] = {}
    for block in _BLOCKS:
        rows = np.stack([product(np.tile(row, (block, 1)), weight) for row in tries])
        found[block] = rows[:, 0] if (rows == rows[:, :1]).all() else None
    for first in found.values():
        if first is not None:
            same = (b for b, rows in found.items() if rows is not None and (rows == first).all())
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
    """Blocks and the rows each takes; the last of the smallest blocks may have fewer."""
    start = 0
    for block in blocks:
        while rows - start >= block or (block == blocks[-1] and start < rows):
            yield block, slice(start, min(start + block, rows))
            start += block
