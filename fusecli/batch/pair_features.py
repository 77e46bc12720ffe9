"""Read the features of pairs for a batch, and refuse those that do not fit into memory."""

from __future__ import annotations

from fusecli.batch.memory import bytes_left, bytes_of_pair
from fusecli.batch.pair_inputs import Features, PairChecks
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.tuning import Tuning
from fusecli.errors import FuseError
from fusecli.pairs.open import Pair
from fusecli.pairs.reader import PairReader
from fusecli.pairs.stamps import FileStamp

_DEFAULT = Tuning()


class PairFeaturesReader:
    """Reads the features of pairs; every failure is a sentence about that pair alone.

    Args:
        spec: what they are read for.
        tuning: from which size on memory is looked at first.
    """

    def __init__(self, spec: FusionSpec, tuning: Tuning = _DEFAULT) -> None:
        self._spec, self._tuning = spec, tuning
        self._reader = PairChecks(spec)
        self._headers = PairReader(spec.reading)

    def read(self, pair: Pair, stamps: list[FileStamp]) -> Features | str:
        """A pair's features, or why there are none.

        Args:
            pair: which.
            stamps: of its files.
        """
        try:
            if sum(stamp[0] for stamp in stamps if stamp) > self._tuning.large_pair_bytes:
                shapes = self._headers.shapes(pair)
                if why := self.too_large(pair, shapes.T, shapes.P):
                    return why
            return self._reader.read(pair)
        except FuseError as error:
            return str(error)
        except MemoryError:
            return f"{pair.image.file} and {pair.text.file}: do not fit into memory"
        except OSError as error:  # the disk or the file server failed
            name = error.filename or f"{pair.image.file} or {pair.text.file}"
            return f"{name}: cannot be read: {error.strerror or error}"

    def close(self) -> None:
        """Close the files that are kept open."""
        self._reader.close()
        self._headers.close()

    def too_large(self, pair: Pair, T: int, P: int) -> str | None:
        """Why a pair of so many tokens does not fit into memory; None where it may."""
        needed = bytes_of_pair(self._spec, T, P)
        if needed < self._tuning.large_pair_bytes:
            return None
        left = bytes_left()
        if left is None or needed <= left:
            return None
        return (
            f"{pair.image.file} and {pair.text.file}: {P:,} image tokens and {T:,} text tokens "
            f"take at least {needed:,} bytes to fuse, and there are {left:,} left: give fewer "
            "tokens, or use a machine with more memory"
        )
