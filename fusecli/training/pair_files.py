"""The files of pairs as a run reads them: always the same content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, FuseError, shortened
from fusecli.features.literals import Side
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.literals import SIDES
from fusecli.pairs.fingerprints import content_of
from fusecli.pairs.open import Pair
from fusecli.pairs.pair import Place
from fusecli.pairs.reader import PairFeatures, PairReader
from fusecli.pairs.stamps import FileStamps
from fusecli.training.said import SaidOfPairs

_READINGS = 3  # of a pair whose files are touched meanwhile


class PairFiles:
    """Pairs as `load_examples` reads them.

    Args:
        pairs: in their order.
        options: how files are read.

    Attributes:
        ids: of the pairs.
        stored: int64 `[N]`, text tokens in the file of each pair that was read, with padding.
        said: what is to be said of the pairs that were read.
    """

    def __init__(self, pairs: Sequence[Pair], options: ReadOptions) -> None:
        self._pairs, self._reader = pairs, PairReader(options)
        self.ids: Sequence[str] = tuple(pair.id for pair in pairs)
        self.stored = np.zeros(len(pairs), np.int64)
        self.said = SaidOfPairs(len(pairs))
        # Of each pair that was read: its files' sizes and times, their versions, and the content
        # that was read, as hashes; 0 for one that was not.
        self._stamps, self._versions = np.zeros((2, len(pairs)), np.int64)
        self._contents = np.zeros(len(pairs), np.uint64)

    def named(self) -> dict[Side, NDArray[np.int64]]:
        """int64 `[N]` a side: equal numbers where two pairs name the same features."""
        numbers: dict[Side, NDArray[np.int64]] = {}
        for side in SIDES:
            known: dict[Place, int] = {}
            places = (pair.image if side == "image" else pair.text for pair in self._pairs)
            numbers[side] = np.array([known.setdefault(p, len(known)) for p in places], np.int64)
        return numbers

    def read(self, row: int) -> PairFeatures:
        """Both sides of a pair.

        Raises:
            FuseError: it cannot be read, or a file was changed since it was read first; names
                the pair.
        """
        pair = self._pairs[row]
        try:
            features = self._read_unchanged(row, pair)
        except FuseError as error:
            raise type(error)(f"pair {shortened(pair.id)!r}: {error}") from None
        self.stored[row] = len(features.text)
        self.said.add(row, features)
        return features

    def _read_unchanged(self, row: int, pair: Pair) -> PairFeatures:
        """Raises:
        FeatureFileError: the files are others than those that were read first.
        """
        for _ in range(_READINGS):
            stamps, version = _hashes_of(pair)
            features = self._reader.read(pair)
            after = _hashes_of(pair)
            first = self._stamps[row] or stamps
            if stamps != first or after[0] != first:
                break
            if after[1] != version:
                continue  # a further link or other rights, or a rewrite: it is read again
            if version != self._versions[row]:  # the first time, or the same
                content = content_of(features)
                if content != (self._contents[row] or content):
                    break
                self._stamps[row], self._versions[row] = stamps, version
                self._contents[row] = content
            return features
        raise FeatureFileError(
            f"{pair.image.file} or {pair.text.file}: changed while the run reads it: run "
            "the command again once nobody writes to it"
        )


def _hashes_of(pair: Pair) -> tuple[int, int]:
    """64 bits each, not 0, that tell sizes and times, and the versions, of a pair's files."""
    files = FileStamps()
    return hash(tuple(files.of(pair))) or 1, hash(tuple(files.versions(pair))) or 1
