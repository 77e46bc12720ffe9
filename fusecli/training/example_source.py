"""Where the pairs of a training run are read from.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.features.literals import Side

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_READ_AT_ONCE = 64  # pairs that the reading threads have in hand together
_READERS = 2


class ExampleFeatures(Protocol):
    """Features of one pair, as `pairs.reader.PairFeatures` has them.

    Attributes:
        image: float32 `[P, Di]`.
        text: float32 `[T, Dt]`.
        image_mask: bool `[P]`, true is a real token, or None if all are.
        text_mask: bool `[T]`, likewise.
    """

    @property
    def image(self) -> Floats: ...
    @property
    def text(self) -> Floats: ...
    @property
    def image_mask(self) -> Mask | None: ...
    @property
    def text_mask(self) -> Mask | None: ...


class ExampleSource(Protocol):
    """Where pairs are read from, by their number; several threads may read."""

    @property
    def ids(self) -> Sequence[str]: ...

    def read(self, row: int) -> ExampleFeatures: ...


def read_all(source: ExampleSource) -> Iterator[tuple[int, ExampleFeatures]]:
    """Every pair in order, with its number; two threads read ahead."""
    n = len(source.ids)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, n, _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, n))
            yield from zip(rows, pool.map(source.read, rows), strict=True)


def trimmed(features: ExampleFeatures, side: Side) -> tuple[Floats, Mask | None]:
    """Tokens `[tokens, D]` without the padding at their end; the mask only where padding stands
    between.

    A text keeps its places, because the labels of `tag` count tokens. Masked tokens are zero.
    """
    tokens = features.text if side == "text" else features.image
    real = features.text_mask if side == "text" else features.image_mask
    if real is None:
        return tokens, None
    if side == "image" and real.any():
        return tokens[real], None
    length = int(real.nonzero()[0][-1]) + 1 if real.any() else 1
    tokens, real = tokens[:length], real[:length]
    if real.all():
        return tokens, None
    return np.where(real[:, None], tokens, np.float32(0)), real
