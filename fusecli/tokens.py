"""From a file's axes to rows of tokens, chunk by chunk, with what was seen on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.stored import StoredTensor
from fusecli.shapes import Axes

# A row this much shorter than the longest is as good as zero: the padding of an encoder that
# stores float16 zeros with noise, not a short feature.
NEARLY_ZERO = 1e-4


@dataclass
class Seen:
    """What was seen of one side's features while they were read.

    Attributes:
        rows: tokens that took part (not masked).
        zero_rows: of these, all zero or nearly so.
        largest_norm: Euclidean length of the longest.
    """

    rows: int = 0
    zero_rows: int = 0
    largest_norm: float = 0.0


@dataclass
class TokenReader:
    """Reads one side of a job as `[n, tokens, width]`, float32, masked rows zero.

    Attributes:
        stored: the tensor.
        axes: what its axes mean.
        mask: bool `[N, tokens]` or `[1, tokens]`, true for real tokens; None if all are.
        allow_nonfinite: let NaN and infinity pass.
        shared: the file holds one sample that serves every one of the job.
        seen: statistics of what was read so far.
    """

    stored: StoredTensor
    axes: Axes
    mask: NDArray[np.bool_] | None = None
    allow_nonfinite: bool = False
    shared: bool = False
    seen: Seen = field(default_factory=Seen)
    _kept: NDArray[np.float32] | None = None
    _places: list[NDArray[np.uint8]] = field(default_factory=list)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Samples `start:stop`, checked; one sample where it serves them all.

        The result stays as it is until the call after the next.

        Raises:
            FeatureFileError: NaN or infinity in a row that is not masked; the first is named.
        """
        if self._kept is not None and not self._own_masks:
            return self._kept
        axis = self.axes.letters.find("N")
        if self.shared or axis < 0:
            whole = self.stored.read()
        else:
            whole = self.stored.part(axis, start, stop, self._place(stop - start))
        tokens = whole.transpose(self.axes.order).reshape(-1, self.axes.tokens, self.axes.width)
        mask = self.mask_rows(start, stop)
        if mask is not None and not mask.all():
            # Cut out of the arithmetic: what is stored in padding must not matter, NaN least.
            tokens = np.where(mask[..., None], tokens, np.float32(0))
        elif self._own_masks:
            tokens = np.broadcast_to(tokens, (stop - start, *tokens.shape[1:]))
        tokens = np.ascontiguousarray(tokens)
        self._look(tokens, mask, start)
        if self.shared:
            self._kept = tokens
        return tokens

    def _place(self, samples: int) -> NDArray[np.uint8] | None:
        """Memory for a chunk of a stack; two take turns, one computed with, one read into."""
        if samples == (self.axes.samples or 1):
            return None
        nbytes = self.stored.nbytes // (self.axes.samples or 1) * samples
        if len(self._places) < 2:
            self._places.append(np.empty(nbytes, np.uint8))
        else:
            self._places.reverse()
        return self._places[-1]

    @property
    def _own_masks(self) -> bool:
        """Each sample sees another part of the one shared."""
        return self.shared and self.mask is not None and len(self.mask) > 1

    def mask_rows(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """The mask of samples `start:stop`."""
        if self.mask is None or len(self.mask) == 1:
            return self.mask
        return self.mask[start:stop]

    def _look(
        self, tokens: NDArray[np.float32], mask: NDArray[np.bool_] | None, start: int
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("npd,npd->np", tokens, tokens)
        if not np.isfinite(squares).all():
            # Squares overflow beyond 1.8e19, which is not an error by itself.
            if not self.allow_nonfinite:
                self._refuse_nonfinite(tokens, start)
            squares = np.einsum("npd,npd->np", tokens, tokens, dtype=np.float64)
        norms = np.sqrt(squares)
        if mask is not None:
            norms = norms[np.broadcast_to(mask, norms.shape)]
        self.seen.rows += norms.size
        largest = float(np.max(norms, initial=0.0))
        self.seen.largest_norm = max(self.seen.largest_norm, largest)
        self.seen.zero_rows += int((norms <= NEARLY_ZERO * self.seen.largest_norm).sum())

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
        if self.axes.samples is not None:
            place = f"sample {sample}, {place}"
        count = int((~np.isfinite(tokens)).any(axis=2).sum())
        rows = "1 row" if count == 1 else f"{count} rows"
        raise FeatureFileError(
            f"{self.stored.where}: holds {what} at {place} (in {rows} here): "
            "mend the file, mask these tokens, or say --allow-nonfinite"
        )


def refuse_empty_images(mask: NDArray[np.bool_], where: str) -> None:
    """Raises:
    ShapeError: a sample of the mask has no real token; the first is named.
    """
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ShapeError(
            f"{where}: sample {empty[0]}{more} has every image token masked: "
            "there is nothing to attend to; --allow-empty-image gives it a context of zero"
        )
