"""What is kept of one side of all pairs: an index, and the tokens where they fit into memory.

N are pairs, U distinct samples, D the width of a side. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.features.literals import Side
from fusecli.training.example_source import Floats, Mask

Rows = NDArray[np.int64]


def _machine_memory() -> int:
    """Bytes of memory that the machine has; 1 TB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


class PackedSide:
    """Distinct samples of one side, their tokens one after the other.

    Args:
        width: of a token.
        capacity: bytes that the tokens may take. The memory is reserved, and becomes real page
            by page as it is filled.
    """

    def __init__(self, width: int, capacity: int) -> None:
        capacity = min(capacity, _machine_memory())  # no system reserves more
        self.tokens: Floats = np.empty((max(1, capacity // (4 * width)), width), np.float32)
        self.starts: list[int] = []
        self.used = 0

    def add(self, tokens: Floats) -> bool:
        """Append one sample; False if it does not fit."""
        start = self.used
        stop = start + len(tokens)
        if stop > len(self.tokens):
            return False
        self.tokens[start:stop] = tokens
        self.starts.append(start)
        self.used = stop
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that have been added."""
        return 4 * self.used * int(self.tokens.shape[1])


@dataclass
class SideIndex:
    """What is known of one side of every pair without its tokens.

    Attributes:
        of: int64 `[N]`, which distinct sample a pair has.
        first: int64 `[U]`, the first pair that has this sample.
        lengths: int64 `[U]`, tokens of each distinct sample without padding at its end.
        hashes: of the content of each distinct sample.
        means: float32 `[U, D]`, or None if they do not fit into memory.
        holes: masks of the distinct samples that have padding between real tokens.
        size: root of the mean square of all numbers, the scale of their rounding errors.
    """

    of: Rows
    first: Rows
    lengths: Rows
    hashes: list[str]
    means: Floats | None
    holes: dict[int, Mask]
    size: float


class SideScan:
    """Collects one side while the pairs are read for the first time."""

    def __init__(self, side: Side, width: int, n: int, max_memory: int) -> None:
        self.side, self.width, self.n = side, width, n
        self.known: dict[str, int] = {}
        self.of = np.zeros(n, np.int64)
        self.first: list[int] = []
        self.lengths: list[int] = []
        # Means may take a tenth of the memory; a single-vector side needs none.
        self.means: Floats | None = None
        if n * width * 4 <= max_memory // 10:
            self.means = np.empty((n, width), np.float32)
        self.holes: dict[int, Mask] = {}
        self.squares, self.count = 0.0, 0

    def add(self, row: int, tokens: Floats, real: Mask | None, packed: PackedSide | None) -> bool:
        """Note one pair's side; False if `packed` is full."""
        digest = hashlib.blake2b(np.ascontiguousarray(tokens).data, digest_size=16)
        digest.update(repr(tokens.shape).encode())
        if real is not None:
            digest.update(real.tobytes())
        key = digest.hexdigest()
        if key in self.known:
            self.of[row] = self.known[key]
            return True
        index = self.known[key] = len(self.known)
        self.of[row] = index
        self.first.append(row)
        self.lengths.append(len(tokens))
        flat = np.ascontiguousarray(tokens).reshape(-1)
        self.squares += float(np.dot(flat, flat))
        self.count += len(flat)
        if real is not None:
            self.holes[index] = real
        if self.means is not None:
            self.means[index] = mean_token(tokens, real)
        return packed is None or packed.add(tokens)

    def index(self) -> SideIndex:
        means = None if self.means is None else self.means[: len(self.known)]
        return SideIndex(
            self.of,
            np.array(self.first, np.int64),
            np.array(self.lengths, np.int64),
            list(self.known),
            means,
            self.holes,
            (self.squares / max(self.count, 1)) ** 0.5,
        )


def mean_token(tokens: Floats, real: Mask | None) -> Floats:
    """`[tokens, D]` to `[D]`: the mean of the real tokens, zero if there is none."""
    if real is not None:
        tokens = tokens[real]
    if not len(tokens):
        return np.zeros(tokens.shape[1], np.float32)
    mean: Floats = tokens.mean(axis=0, dtype=np.float32)
    return mean
