"""The pairs of a training run as arrays: packed in memory, or read anew for every batch.

N are pairs, T text tokens, P image tokens, Dt and Di the widths of the features. This module
does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import ShapeError
from fusecli.features.literals import Side as Side
from fusecli.training.example_source import ExampleSource, Floats, Mask, read_all, trimmed
from fusecli.training.side_index import PackedSide, Rows, SideIndex, SideScan, mean_token

_ROUNDING = 1e-5  # of the size of the features; float32 rounds at 6e-8
_FORESEEN_BY = 200  # after so many pairs the size of all pairs is estimated
_CLEARLY = 2.0  # times the memory: later pairs may be smaller, for example if they are sorted
_CHUNK_BYTES = 16 << 20  # tokens that statistics read at a time


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
            nearly constant is not amplified to noise.
    """

    mean: Floats
    std: Floats


@dataclass(frozen=True)
class Pooled:
    """Which sides of a batch are replaced by the mean of their real tokens, as one token."""

    text: bool = False
    image: bool = False

    def of(self, side: Side) -> bool:
        """Whether this side is replaced."""
        return self.text if side == "text" else self.image


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
        index: dict[Side, SideIndex],
        packed: dict[Side, PackedSide] | None,
        foreseen: str | None = None,
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
            why = foreseen or "the features are larger than --max-memory allows"
            self.notes.append(f"{why}: every batch is read from the files")

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
                [mean_token(t, None if mask is None else mask[i]) for i, t in enumerate(tokens)]
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
        # Channels that differ only by rounding stay as they are, and are not amplified to noise.
        std = np.where(std <= _ROUNDING * index.size, 1.0, std)
        mean = mean if shift is None else mean + shift
        return ChannelStatistics(mean.astype(np.float32), std.astype(np.float32))

    def _read(self, side: Side, rows: Rows) -> tuple[Floats, Mask | None]:
        distinct, inverse = np.unique(rows, return_inverse=True)
        read = [trimmed(self._source.read(int(row)), side) for row in distinct]
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
    named: Mapping[Side, Rows] | None = None,
) -> Examples:
    """Read every pair once: hash it, and keep it where all fit into memory.

    Args:
        source: the pairs.
        max_memory: bytes that the features may take; beyond that they are read from the files
            again for every batch.
        on_read: called with the number of pairs read, and of all pairs.
        named: int64 `[N]` a side, equal numbers where two pairs name the same features. With it,
            features that are much too large are not collected until the memory is full.

    Raises:
        FuseError: a pair cannot be read.
        ShapeError: features of two widths; names both pairs.
    """
    n = len(source.ids)
    first = source.read(0)
    widths: dict[Side, int] = {"text": first.text.shape[1], "image": first.image.shape[1]}
    sides: tuple[Side, Side] = ("text", "image")
    scans = {side: SideScan(side, widths[side], n, max_memory) for side in sides}
    budget = max_memory - sum(s.means.nbytes for s in scans.values() if s.means is not None)
    packed: dict[Side, PackedSide] | None = {
        side: PackedSide(widths[side], budget) for side in sides
    }
    foreseen = None if named is None else _Foreseen(named, budget)
    said: str | None = None
    for row, features in read_all(source):
        for side in sides:
            tokens, real = trimmed(features, side)
            _refuse_other_width(source, row, side, tokens.shape[1], widths[side])
            kept = scans[side].add(row, tokens, real, None if packed is None else packed[side])
            if not kept:
                packed = None
        if packed is not None:
            used = sum(side.nbytes for side in packed.values())
            if used > budget:
                packed = None
            elif foreseen is not None:
                said = foreseen.too_large(row, packed)
                packed = packed if said is None else None
        if on_read is not None:
            on_read(row + 1, n)
    return Examples(
        source, widths, {side: scan.index() for side, scan in scans.items()}, packed, said
    )


def _refuse_other_width(
    source: ExampleSource, row: int, side: Side, found: int, expected: int
) -> None:
    """Raises:
    ShapeError: the features of a pair are not as wide as those of the first.
    """
    if found != expected:
        raise ShapeError(
            f"pair {source.ids[row]}: its {side} features are {found} wide, "
            f"those of pair {source.ids[0]} are {expected}: a training run takes "
            "features of one width on each side"
        )


class _Foreseen:
    """Estimates early that the features will not fit, from the size of those read so far.

    Args:
        named: int64 `[N]` a side, equal numbers where two pairs name the same features.
        budget: bytes of memory.
    """

    def __init__(self, named: Mapping[Side, Rows], budget: int) -> None:
        self._budget = budget
        self._read: dict[Side, Rows] = {}  # [N], number of different features up to each pair
        for side, numbers in named.items():
            first = np.zeros(len(numbers), np.int64)
            first[np.unique(numbers, return_index=True)[1]] = 1
            self._read[side] = np.cumsum(first)

    def too_large(self, row: int, packed: Mapping[Side, PackedSide]) -> str | None:
        """The note if all pairs will not fit, estimated from those packed so far; else None."""
        if row < _FORESEEN_BY:
            return None
        wanted = sum(
            packed[side].nbytes * read[-1] / read[row] for side, read in self._read.items()
        )
        if wanted < _CLEARLY * self._budget:
            return None
        size = f"{wanted / 1e9:,.1f} GB" if wanted >= 1e9 else f"{wanted / 1e6:,.1f} MB"
        return (
            f"the features would take about {size} by the first {row + 1:,} pairs, more than "
            "--max-memory allows"
        )


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
