"""The pairs of a training run as arrays: packed in memory, or read anew for every batch.

N are pairs, T text tokens, P image tokens, Dt and Di the widths of the features. This module
does not import torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import ShapeError
from fusecli.features.literals import Side as Side

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

_READ_AT_ONCE = 64  # pairs that the reading threads have in hand together
_READERS = 2
_ROUNDING = 1e-5  # of the size of the features; float32 rounds at 6e-8
_CHUNK_BYTES = 16 << 20  # tokens that statistics are made of at a time


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


@dataclass(frozen=True)
class Batch:
    """Pairs padded to one length.

    Attributes:
        text: float32 `[N, T, Dt]`; padding is zero.
        image: float32 `[N, P, Di]`; padding is zero.
        text_mask: bool `[N, T]`, true is a real token; None if all are.
        image_mask: bool `[N, P]`, likewise.
    """

    text: Floats
    image: Floats
    text_mask: Mask | None
    image_mask: Mask | None


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and spread of each channel of one side.

    Attributes:
        mean: float32 `[D]`.
        std: float32 `[D]`; never below a tenth of the mean spread, so that a channel that is
            nearly constant is not blown up to noise.
    """

    mean: Floats
    std: Floats


@dataclass(frozen=True)
class Pooled:
    """Which sides of a batch are replaced by the mean of their real tokens, as one token."""

    text: bool = False
    image: bool = False

    def of(self, side: Side) -> bool:
        """Whether this side is."""
        return self.text if side == "text" else self.image


def _machine_memory() -> int:
    """Bytes of memory that the machine has; 1 TB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


class _Packed:
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
class _SideIndex:
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


class _SideScan:
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

    def add(self, row: int, tokens: Floats, real: Mask | None, packed: _Packed | None) -> bool:
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
            self.means[index] = _mean(tokens, real)
        return packed is None or packed.add(tokens)

    def index(self) -> _SideIndex:
        means = None if self.means is None else self.means[: len(self.known)]
        return _SideIndex(
            self.of,
            np.array(self.first, np.int64),
            np.array(self.lengths, np.int64),
            list(self.known),
            means,
            self.holes,
            (self.squares / max(self.count, 1)) ** 0.5,
        )


class Examples:
    """All pairs of a run; made by `load_examples`.

    Attributes:
        ids: of the pairs.
        image_dim: Di.
        text_dim: Dt.
        in_memory: whether the tokens are packed in memory; otherwise each batch is read from
            the files.
        notes: what is assumed, for people.
    """

    def __init__(
        self,
        source: ExampleSource,
        widths: dict[Side, int],
        index: dict[Side, _SideIndex],
        packed: dict[Side, _Packed] | None,
    ) -> None:
        self._source, self._index, self._packed = source, index, packed
        self._starts: dict[Side, Rows] = {}
        for side, tokens in (packed or {}).items():
            self._starts[side] = np.array(tokens.starts, np.int64)
        self.ids: tuple[str, ...] = tuple(source.ids)
        self.text_dim, self.image_dim = widths["text"], widths["image"]
        self.in_memory = packed is not None
        self.notes: list[str] = []
        if not self.in_memory:
            self.notes.append(
                "the features are larger than --max-memory allows: every batch is read from the "
                "files"
            )

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.ids)

    def width(self, side: Side) -> int:
        """Dt or Di."""
        return self.text_dim if side == "text" else self.image_dim

    def lengths(self, side: Side) -> Rows:
        """int64 `[N]`: tokens of each pair, without the padding at the end."""
        index = self._index[side]
        lengths: Rows = index.lengths[index.of]
        return lengths

    def content(self, side: Side) -> Rows:
        """int64 `[N]`: equal numbers where two pairs have the same features on this side."""
        return self._index[side].of

    @property
    def image_key(self) -> tuple[str, ...]:
        """Content hash of each pair's image features and mask."""
        return self._hashes("image")

    @property
    def text_key(self) -> tuple[str, ...]:
        """Content hash of each pair's text features and mask."""
        return self._hashes("text")

    @property
    def text_mask(self) -> Mask:
        """bool `[N, Tmax]`, true where a text token is real."""
        index = self._index["text"]
        samples = np.arange(int(index.lengths.max())) < index.lengths[:, None]
        for sample, real in index.holes.items():
            samples[sample, : len(real)] = real
        mask: Mask = samples[index.of]
        return mask

    def _hashes(self, side: Side) -> tuple[str, ...]:
        index = self._index[side]
        return tuple(index.hashes[sample] for sample in index.of)

    def batch(
        self, text_rows: Rows, image_rows: Rows | None = None, pooled: Pooled | None = None
    ) -> Batch:
        """Features of some pairs, padded to one length.

        Args:
            text_rows: int64 `[N]`, the pairs whose texts are wanted.
            image_rows: int64 `[N]`, the pairs whose images go with them; None: their own.
            pooled: sides of which only the mean of the real tokens is wanted, as one token.
        """
        pooled = pooled or Pooled()
        image_rows = text_rows if image_rows is None else image_rows
        text, text_mask = self.side("text", text_rows, pooled.text)
        image, image_mask = self.side("image", image_rows, pooled.image)
        return Batch(text, image, text_mask, image_mask)

    def side(self, side: Side, rows: Rows, pooled: bool = False) -> tuple[Floats, Mask | None]:
        """One side of some pairs: `[N, tokens, width]`, and the mask `[N, tokens]` or None."""
        index = self._index[side]
        samples = index.of[rows]
        if pooled and index.means is not None:
            return index.means[samples][:, None], None
        if self._packed is not None:
            starts, lengths = self._starts[side][samples], index.lengths[samples]
            tokens, mask = _gather(self._packed[side].tokens, starts, lengths)
            mask = _with_holes(mask, index.holes, samples, tokens.shape[1])
        else:
            tokens, mask = self._read(side, index.first[samples])
        if pooled:
            means = np.stack(
                [_mean(t, None if mask is None else mask[i]) for i, t in enumerate(tokens)]
            )
            return means[:, None], None
        return tokens, mask

    def statistics(self, side: Side, rows: Rows, pooled: bool = False) -> ChannelStatistics:
        """Mean and spread of the channels over these pairs; each distinct sample counts once.

        Args:
            side: which.
            rows: int64 `[N]`.
            pooled: over the means of the samples instead of over their tokens.
        """
        index = self._index[side]
        distinct = index.first[np.unique(index.of[rows])]
        width = self.width(side)
        count, total, squares = 0, np.zeros(width), np.zeros(width)
        shift: NDArray[np.float64] | None = None
        typical = int(index.lengths.max()) if not pooled or index.means is None else 1
        step = max(1, _CHUNK_BYTES // (4 * width * typical))
        for start in range(0, len(distinct), step):
            tokens, mask = self.side(side, distinct[start : start + step], pooled)
            flat = tokens[mask] if mask is not None else tokens.reshape(-1, width)
            exact = flat.astype(np.float64)
            if shift is None:  # keeps the squares small where the mean is large
                shift = exact.mean(axis=0)
            exact -= shift
            count += len(exact)
            total += exact.sum(axis=0)
            squares += np.einsum("nd,nd->d", exact, exact)
        mean = total / max(count, 1)
        std = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0))
        floor = 0.1 * std.mean()
        std = np.maximum(std, floor)
        # What is equal but for rounding stays as it is, instead of being blown up to noise.
        std = np.where(std <= _ROUNDING * index.size, 1.0, std)
        mean = mean if shift is None else mean + shift
        return ChannelStatistics(mean.astype(np.float32), std.astype(np.float32))

    def _read(self, side: Side, rows: Rows) -> tuple[Floats, Mask | None]:
        distinct, inverse = np.unique(rows, return_inverse=True)
        read = [_trimmed(self._source.read(int(row)), side) for row in distinct]
        lengths = np.array([len(tokens) for tokens, _ in read])
        out = np.zeros((len(distinct), lengths.max(), self.width(side)), np.float32)
        mask = np.arange(lengths.max()) < lengths[:, None]
        for position, (tokens, real) in enumerate(read):
            out[position, : len(tokens)] = tokens
            if real is not None:
                mask[position, : len(tokens)] = real
        if len(distinct) != len(rows) or not np.array_equal(distinct, rows):
            out, mask = out[inverse], mask[inverse]
        return out, None if mask.all() else mask


def load_examples(
    source: ExampleSource,
    max_memory: int,
    on_read: Callable[[int, int], None] | None = None,
) -> Examples:
    """Read every pair once: hash it, and keep it where all fit into memory.

    Args:
        source: the pairs.
        max_memory: bytes that the features may take; beyond that they are read from the files
            again for every batch.
        on_read: is told how many pairs of how many have been read.

    Raises:
        FuseError: a pair cannot be read.
        ShapeError: features of two widths; names both pairs.
    """
    n = len(source.ids)
    first = source.read(0)
    widths: dict[Side, int] = {"text": first.text.shape[1], "image": first.image.shape[1]}
    sides: tuple[Side, Side] = ("text", "image")
    scans = {side: _SideScan(side, widths[side], n, max_memory) for side in sides}
    budget = max_memory - sum(s.means.nbytes for s in scans.values() if s.means is not None)
    packed: dict[Side, _Packed] | None = {side: _Packed(widths[side], budget) for side in sides}
    for row, features in _read_all(source):
        for side in sides:
            tokens, real = _trimmed(features, side)
            if tokens.shape[1] != widths[side]:
                raise ShapeError(
                    f"pair {source.ids[row]}: its {side} features are {tokens.shape[1]} wide, "
                    f"those of pair {source.ids[0]} are {widths[side]}: a training run takes "
                    "features of one width on each side"
                )
            kept = scans[side].add(row, tokens, real, None if packed is None else packed[side])
            if not kept:
                packed = None
        if packed is not None and sum(side.nbytes for side in packed.values()) > budget:
            packed = None
        if on_read is not None:
            on_read(row + 1, n)
    return Examples(source, widths, {side: scan.index() for side, scan in scans.items()}, packed)


def _read_all(source: ExampleSource) -> Iterator[tuple[int, ExampleFeatures]]:
    n = len(source.ids)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, n, _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, n))
            yield from zip(rows, pool.map(source.read, rows), strict=True)


def _trimmed(features: ExampleFeatures, side: Side) -> tuple[Floats, Mask | None]:
    """Tokens without the padding at their end; the mask only where padding stands between.

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


def _gather(flat: Floats, starts: Rows, lengths: Rows) -> tuple[Floats, Mask | None]:
    longest = int(lengths.max())
    places = starts[:, None] + np.arange(longest)  # [N, tokens]
    if int(lengths.min()) == longest:
        return np.take(flat, places, axis=0), None
    mask: Mask = np.arange(longest) < lengths[:, None]
    tokens: Floats = np.take(flat, np.where(mask, places, starts[:, None]), axis=0)
    tokens[~mask] = 0
    return tokens, mask


def _with_holes(
    mask: Mask | None, holes: dict[int, Mask], samples: Rows, longest: int
) -> Mask | None:
    for position, sample in enumerate(samples.tolist() if holes else ()):
        real = holes.get(sample)
        if real is not None:
            mask = np.ones((len(samples), longest), np.bool_) if mask is None else mask
            mask[position, : len(real)] = real
    return mask


def _mean(tokens: Floats, real: Mask | None) -> Floats:
    """`[tokens, D]` to `[D]`: the mean of the real tokens, zero if there is none."""
    if real is not None:
        tokens = tokens[real]
    if not len(tokens):
        return np.zeros(tokens.shape[1], np.float32)
    mean: Floats = tokens.mean(axis=0, dtype=np.float32)
    return mean
