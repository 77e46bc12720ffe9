"""The work itself: some pairs in, their fused rows or the reason why not out.

It knows neither journal nor output folder, so that it can run in a thread, or somewhere else.
What comes out for a pair depends on that pair and the run's spec alone, to the last bit: not on
its neighbours, on how pairs were grouped, on which of them failed, or on where a run was stopped.
A matrix product over the rows of several pairs would not give that (its library treats rows by
their place and number), so that every pair is fused by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.journal import Shapes
from fusecli.batch.reading import Features, PairReader, Stamp, Stamps
from fusecli.batch.spec import FusionSpec
from fusecli.device import cores, one_thread_a_product
from fusecli.errors import FeatureFileError, FuseError
from fusecli.features.dtypes import from_float32
from fusecli.fusion import Fusion
from fusecli.pairs import Pair
from fusecli.report import Diagnosis
from fusecli.results import asking_sides, fuse_chunk


@dataclass(slots=True)
class Result:
    """What became of one pair.

    Attributes:
        pair: which.
        stamps: size and time of change of its files, as they were read.
        tensors: the fused rows and what goes with them by name, as they are stored and in the
            shapes the axes want; None where it failed.
        error: why it failed.
        diagnoses: what speaks against the result.
    """

    pair: Pair
    stamps: list[Stamp]
    tensors: dict[str, NDArray[Any]] | None = None
    error: str | None = None
    diagnoses: list[Diagnosis] = field(default_factory=list)

    @property
    def shapes(self) -> Shapes:
        """Of the tensors."""
        return {name: tensor.shape for name, tensor in (self.tensors or {}).items()}

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in (self.tensors or {}).values())


class Fuser:
    """Reads and fuses pairs; several threads may call `work`.

    Args:
        spec: what is computed.
    """

    def __init__(self, spec: FusionSpec) -> None:
        self.spec = spec
        self._reader = PairReader(spec)
        self._built: dict[tuple[str, bool], Fusion] = {}
        self._building = Lock()
        # Reading waits and may be done by many threads, products use all of a core.
        self._cores = BoundedSemaphore(cores())

    def undivided(self) -> AbstractContextManager[object]:
        """While pairs are fused: numpy's products stay on the thread that asks for them.

        Threads of its own would take the cores from the other workers, and the number of them
        would show in the last bits.
        """
        return one_thread_a_product() if self.spec.engine == "numpy" else nullcontext()

    def work(self, pairs: Sequence[Pair], budget: int) -> list[Result]:
        """Read and fuse pairs in their order, as far as memory allows.

        Args:
            pairs: at least one.
            budget: bytes of results from which on the rest is left.

        Returns:
            One result for each of the pairs, or of the first of them, at least one.

        Raises:
            FuseError: what concerns the whole run: its weights or its device.
        """
        results = []
        taken = 0
        before = Stamps()
        for pair in pairs:
            result = self._one(pair, before.of(pair))
            results.append(result)
            taken += result.nbytes
            if taken >= budget:
                break
        after = Stamps()
        for index, result in enumerate(results):
            if after.of(result.pair) != result.stamps:
                results[index] = self._again(result.pair)
        return results

    def _again(self, pair: Pair) -> Result:
        """A file was replaced while it was read: once more, and then say so."""
        result = self._one(pair, Stamps().of(pair))
        if Stamps().of(pair) != result.stamps:
            result.tensors = None
            result.error = f"{pair.image.file} or {pair.text.file}: changed while it was read"
        return result

    def _one(self, pair: Pair, stamps: list[Stamp]) -> Result:
        try:
            features = self._reader.read(pair)
        except FuseError as error:
            return Result(pair, stamps, error=str(error))
        except MemoryError:
            return Result(pair, stamps, error=f"{pair.image.file}: does not fit into memory")
        with self._cores:
            rows = self._fuse(features)
        try:
            tensors = self._stored(pair, features, rows)
        except FuseError as error:
            return Result(pair, stamps, error=str(error))
        return Result(pair, stamps, tensors, None, features.diagnoses)

    def _fuse(self, f: Features) -> list[NDArray[np.float32]]:
        fusions = [self._fusion(side, f) for side in asking_sides(self.spec.direction)]
        image_mask = None if f.image_mask is None else f.image_mask[None]
        text_mask = None if f.text_mask is None else f.text_mask[None]
        return fuse_chunk(
            fusions, self.spec.pool, f.image[None], f.text[None], image_mask, text_mask
        )

    def _stored(
        self, pair: Pair, f: Features, rows: list[NDArray[np.float32]]
    ) -> dict[str, NDArray[Any]]:
        """The tensors in the type that is written.

        Raises:
            FeatureFileError: they are not finite.
        """
        tensors = {}
        for made, tensor in zip(rows, f.tensors, strict=True):
            stored = from_float32(made, self.spec.out_dtype)
            if not self._finite(made, stored):
                raise self._not_finite(pair)
            tensors[tensor.key] = np.ascontiguousarray(stored.reshape(tensor.shape))
        return tensors

    def _finite(self, made: NDArray[np.float32], stored: NDArray[Any]) -> bool:
        finite = bool(np.isfinite(made).all())
        if not finite:
            return self.spec.reading.allow_nonfinite
        return self.spec.out_dtype != "float16" or bool(np.isfinite(stored).all())

    def _not_finite(self, pair: Pair) -> FeatureFileError:
        dtype, out = self.spec.dtype, self.spec.out_dtype
        narrow = dtype != "float32" or out == "float16"
        return FeatureFileError(
            f"{pair.image.file} and {pair.text.file}: the fused rows are not finite in {dtype}, "
            f"written as {out}: normalize the features"
            + (", or say --dtype float32 --out-dtype float32" if narrow else "")
        )

    def _fusion(self, asking: str, f: Features) -> Fusion:
        asked = f.image if asking == "text" else f.text
        key = asking, len(asked) == 1
        fusion = self._built.get(key)
        if fusion is None:
            with self._building:
                fusion = self._built.get(key)
                if fusion is None:
                    fusion = self._built[key] = self.spec.build(*key)
        return fusion
