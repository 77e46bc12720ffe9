"""From a file's axes to rows of tokens, chunk by chunk, with what was seen on the way."""

from __future__ import annotations

import threading
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.axes import Axes, Side
from fusecli.features.dtypes import to_float32
from fusecli.features.tensor import StoredTensor
from fusecli.records import open_record, record

# A row this much shorter than the longest is as good as zero: the padding of an encoder that
# stores float16 zeros with noise, not a short feature.
NEARLY_ZERO = 1e-4

# Features that are whole numbers all, and reach this size, are none: token numbers, pixels, or
# quantized features without their scale. (Marks and counts of words are smaller.)
_LARGE_WHOLE = 32.0
_ALL_WHOLE = float(1 << 23)  # float32 has no others from here on

Norms = NDArray[np.floating[Any]]


@record
class RowNorms:
    """The Euclidean lengths of some tokens.

    Attributes:
        real: of the tokens that are not masked, in the order of the file.
        masked: samples with both real and masked tokens.
        inverted: of these, samples whose real tokens are all zero (or nearly so) while a masked
            one is not: their mask marks padding and not real tokens.
        whole: see `largest_whole`; 0 for all samples but the first of the file.
    """

    real: Norms
    masked: int = 0
    inverted: int = 0
    whole: float = 0.0


@open_record
class RowStatistics:
    """What was seen of one side's features while they were read.

    Attributes:
        rows: tokens that took part (not masked).
        zero_rows: of these, all zero or nearly so.
        largest_norm: Euclidean length of the longest.
        masked: samples with both real and masked tokens.
        inverted: of these, samples whose mask seems to mark padding; see `RowNorms`.
        whole: of the first sample, see `largest_whole`.
    """

    rows: int = 0
    zero_rows: int = 0
    largest_norm: float = 0.0
    masked: int = 0
    inverted: int = 0
    whole: float = 0.0

    @property
    def odd(self) -> bool:
        """Whether `feature_diagnoses.of_rows` may have something to say, apart from large rows.

        It is asked for each pair of a batch, of which most are not odd.
        """
        return bool(self.zero_rows or self.inverted or self.whole)

    def add(self, norms: RowNorms) -> None:
        """Add the lengths of further rows, chunk after chunk in the order of the file."""
        real = norms.real
        self.rows += real.size
        self.largest_norm = max(self.largest_norm, float(np.max(real, initial=0.0)))
        self.zero_rows += int((real <= NEARLY_ZERO * self.largest_norm).sum())
        self.masked += norms.masked
        self.inverted += norms.inverted
        self.whole = max(self.whole, norms.whole)


@open_record
class TokenReader:
    """Reads one side of a job as `[n, tokens, width]`, float32, masked rows zero.

    `read` and `tokens` are two steps, so that of several threads one reads while the others
    convert and check.

    Attributes:
        stored: the tensor.
        axes: what its axes mean.
        mask: bool `[N, tokens]` or `[1, tokens]`, true for real tokens; None if all are.
        allow_nonfinite: let NaN and infinity pass.
        shared: the file holds one sample that serves every one of the job.
        repeated: that sample is given once for every one of the job, and not just once.
        first: the sample's row, where one row of a stack is read; for messages.
        seen: statistics of the rows whose lengths were added so far.
    """

    stored: StoredTensor
    axes: Axes
    mask: NDArray[np.bool_] | None = None
    allow_nonfinite: bool = False
    shared: bool = False
    repeated: bool = False
    first: int | None = None
    seen: RowStatistics = field(default_factory=RowStatistics)
    _whole: NDArray[Any] | None = None
    _memory: threading.local = field(default_factory=threading.local)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Samples `start:stop` as they are stored; they stay until this thread reads again.

        Raises:
            FeatureFileError: the file became shorter since its header was read.
        """
        axis = self.axes.letters.find("N")
        if self.shared or axis < 0:
            if self._whole is None:
                self._whole = self.stored.raw()
            return self._whole
        return self.stored.raw_part(axis, start, stop, self._place(stop - start))

    def tokens(
        self, raw: NDArray[Any], start: int, stop: int
    ) -> tuple[NDArray[np.float32], RowNorms]:
        """What `read` gave for `start:stop`, converted and checked.

        Returns:
            `[n, tokens, width]`, one sample where it serves them all, and the lengths of its
            rows that are not masked (once, where it serves them all).

        Raises:
            FeatureFileError: NaN or infinity in a row that is not masked; the first is named.
        """
        whole = to_float32(raw, self.stored.dtype)
        tokens = whole.transpose(self.axes.order).reshape(-1, self.axes.tokens, self.axes.width)
        mask = self.mask_rows(start, stop)
        masked = inverted = 0
        stored = tokens
        if mask is not None and not mask.all():
            # Cut out of the arithmetic: what is stored in padding must not matter, NaN least.
            tokens = np.where(mask[..., None], tokens, np.float32(0))
        elif self._own_masks:
            tokens = np.broadcast_to(tokens, (stop - start, *tokens.shape[1:]))
        tokens = np.ascontiguousarray(tokens)
        once = self.shared and not self._own_masks
        norms = self._norms(tokens[:1] if once else tokens, start)
        if self.repeated and len(tokens) < stop - start:
            tokens = np.repeat(tokens, stop - start, axis=0)
        if once and start > 0:
            return tokens, RowNorms(np.empty(0, np.float32))
        # Whole numbers in a type of whole numbers are only read if an option asks for that.
        is_float = "int" not in self.stored.dtype
        numbers = largest_whole(tokens[0]) if start == 0 and is_float and len(tokens) else 0.0
        if mask is None:
            return tokens, RowNorms(norms.reshape(-1), whole=numbers)
        if not mask.all():
            masked, inverted = _count_inverted(stored, norms, np.broadcast_to(mask, norms.shape))
        return tokens, RowNorms(
            norms[np.broadcast_to(mask, norms.shape)], masked, inverted, numbers
        )

    def _place(self, samples: int) -> NDArray[np.uint8] | None:
        """Memory for a chunk of a stack, used again by this thread for its next."""
        if samples == (self.axes.samples or 1):
            return None
        nbytes = self.stored.nbytes // (self.axes.samples or 1) * samples
        place: NDArray[np.uint8] | None = getattr(self._memory, "place", None)
        if place is None or place.size < nbytes:
            place = self._memory.place = np.empty(nbytes, np.uint8)
        return place

    @property
    def _own_masks(self) -> bool:
        """Each sample sees another part of the one shared."""
        return self.shared and self.mask is not None and len(self.mask) > 1

    def mask_rows(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """The mask of samples `start:stop`."""
        if self.mask is None or len(self.mask) == 1:
            return self.mask
        return self.mask[start:stop]

    def _norms(self, tokens: NDArray[np.float32], start: int) -> Norms:
        """`[n, tokens]`, zero for masked tokens."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares: Norms = np.einsum("npd,npd->np", tokens, tokens)
        if not np.isfinite(squares).all():
            # Squares overflow beyond 1.8e19, which is not an error by itself.
            if not self.allow_nonfinite:
                self._refuse_nonfinite(tokens, start)
            squares = np.einsum("npd,npd->np", tokens, tokens, dtype=np.float64)
        return np.sqrt(squares)

    def _refuse_nonfinite(self, tokens: NDArray[np.float32], start: int) -> None:
        bad = np.argwhere(~np.isfinite(tokens))
        if not len(bad):
            return
        sample, token, column = (int(i) for i in bad[0])
        sample += start
        what = "NaN" if np.isnan(tokens[sample - start, token, column]) else "infinity"
        if what == "infinity" and self.stored.dtype not in ("float32", "float16", "bfloat16"):
            what = "infinity or a number beyond float32"
        place = f"token {token}, column {column}"
        if self.axes.samples is not None or self.first is not None:
            place = f"sample {sample + (self.first or 0)}, {place}"
        count = int((~np.isfinite(tokens)).any(axis=2).sum())
        rows = "1 row" if count == 1 else f"{count} rows"
        raise FeatureFileError(
            f"{self.stored.where}: holds {what} at {place} (in {rows} here): "
            "mend the file, mask these tokens, or say --allow-nonfinite"
        )


def largest_whole(tokens: NDArray[np.float32]) -> float:
    """The largest size of the numbers of `[tokens, width]`, if all of them are whole numbers and
    some are large; else 0.

    Few features begin with a whole number, so that this is mostly one look at the first.
    """
    if not float(tokens[0, 0]).is_integer() or not np.array_equal(tokens[0], np.rint(tokens[0])):
        return 0.0
    largest = float(np.abs(tokens).max())
    if not _LARGE_WHOLE <= largest < _ALL_WHOLE or not np.array_equal(tokens, np.rint(tokens)):
        return 0.0
    return largest


def _count_inverted(
    stored: NDArray[np.float32], norms: Norms, mask: NDArray[np.bool_]
) -> tuple[int, int]:
    """How many samples have real and masked tokens, and of how many the mask seems to mark padding.

    Args:
        stored: `[n, tokens, width]` as they are stored, or one sample that serves all.
        norms: `[n, tokens]`, zero for masked tokens.
        mask: bool `[n, tokens]`, true for real tokens.
    """
    padded = ~mask.all(axis=1) & mask.any(axis=1)
    longest = norms.max(axis=1)  # of the real tokens of each sample
    # Padding is looked at only where the real tokens are short: usually nowhere.
    short = np.flatnonzero(padded & (longest <= NEARLY_ZERO * max(1.0, float(longest.max()))))
    inverted = 0
    for index in short:
        padding = stored[index if len(stored) > 1 else 0][~mask[index]]
        largest = float(np.abs(padding[np.isfinite(padding)]).max(initial=0.0))
        inverted += largest > 0 and float(longest[index]) <= NEARLY_ZERO * largest
    return int(padded.sum()), int(inverted)


def refuse_empty_images(
    mask: NDArray[np.bool_], where: str, side: Side = "image", inverted: str = ""
) -> None:
    """Whether every sample of the context side has a real token.

    Args:
        mask: bool `[N, tokens]` or `[1, tokens]`.
        where: file and key of the features.
        side: the context side.
        inverted: what to do if the mask is 1 for padding, as the end of a sentence.

    Raises:
        ShapeError: one has none; the first is named.
    """
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ShapeError(
            f"{where}: sample {empty[0]}{more} has every {side} token masked: "
            f"there is nothing to attend to{inverted}; --allow-empty-image gives it a context of "
            "zero"
        )
