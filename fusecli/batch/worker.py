"""Read and fuse some pairs: each gives its fused rows, or the reason why it failed.

This module knows neither the journal nor the output folder, so that it can run in a thread
or on another machine.

The result of a pair depends only on that pair and on the run's spec, to the last bit: not
on its neighbours, on how pairs were grouped, on which of them failed, or on where a run was
stopped. Pairs of equal shape are fused together where products are row-stable
(`fusion/backend/row_stable.py`), and one by one elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.pair_features import PairFeaturesReader
from fusecli.batch.pair_inputs import Features
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.store.result import Result
from fusecli.batch.tuning import Tuning
from fusecli.batch.weights import RunWeights
from fusecli.errors import FeatureFileError, FuseError
from fusecli.features.changes import FileVersion
from fusecli.features.dtypes import from_float32
from fusecli.fusion.backend.device import (
    cores,
    one_thread_a_product,
    set_torch_threads,
    torch_threads,
)
from fusecli.fusion.base import Fusion
from fusecli.fusion.literals import Side
from fusecli.fusion.results import PairChunk, count_nonfinite, fuse_chunk, query_sides
from fusecli.pairs.fingerprints import content_of, numbers_of
from fusecli.pairs.open import Pair
from fusecli.pairs.stamps import FileStamps, stamps_of
from fusecli.report import result_diagnoses
from fusecli.report.report import Diagnosis

_ROWS = 8  # texts are filled up to a multiple of this
_JOINED_BYTES = 16 << 20  # of features: from here on products gain nothing by more rows
_DEFAULT = Tuning()

Stop = Callable[[], bool]


_Read = tuple[Result, Features]


class Fuser:
    """Reads and fuses pairs; several threads may call `work`.

    Args:
        spec: what is computed.
        weights: the run's.
        tuning: how long a window may take.
    """

    def __init__(self, spec: FusionSpec, weights: RunWeights, tuning: Tuning = _DEFAULT) -> None:
        self.spec = spec
        self._weights, self._tuning = weights, tuning
        self._reader = PairFeaturesReader(spec, tuning)
        self._built: dict[tuple[Side, bool], Fusion] = {}
        self._building = Lock()
        # Reading mostly waits, so many threads may read; a product uses a whole core.
        self._cores = BoundedSemaphore(cores())

    def close(self) -> None:
        """Close the files that are kept open."""
        self._reader.close()

    def undivided(self) -> AbstractContextManager[object]:
        """Context manager in which numpy's products run on the thread that calls them.

        Numpy's own threads would take the cores from the other workers, and their number would
        change the last bits of the results. Torch computes one pair after the other, and keeps the
        number of threads that the run began with.
        """
        if self.spec.engine == "numpy":
            return one_thread_a_product()
        threads = self._torch_threads
        return nullcontext() if threads is None else torch_threads(threads)

    @property
    def _torch_threads(self) -> int | None:
        """The number of threads for products that torch computes on the CPU."""
        return self.spec.threads if self.spec.engine == "torch" else None

    def work(self, pairs: Sequence[Pair], budget: int, stop: Stop = lambda: False) -> list[Result]:
        """Read and fuse pairs in their order, as far as memory and time allow.

        Args:
            pairs: at least one.
            budget: when the results take so many bytes, the remaining pairs are left.
            stop: called between pairs; when it returns true, the remaining pairs are left.

        Returns:
            One result for each of the pairs, or for the first of them; at least one, unless `stop`
            returned true.

        Raises:
            FuseError: what concerns the whole run: its weights or its device.
        """
        if self._torch_threads is not None:  # a fusion that is built in this block uses them
            set_torch_threads(self._torch_threads)
        until = time.monotonic() + self._tuning.window_seconds

        def over() -> bool:
            return stop() or time.monotonic() > until

        results: list[Result] = []
        versions: list[list[FileVersion | None]] = []  # of the files of each pair
        before = FileStamps()
        read: list[_Read] = []
        taken = held = 0
        for pair in pairs:
            if stop() or (results and time.monotonic() > until):
                break
            versions.append(before.versions(pair))
            result = Result(pair, stamps_of(versions[-1]))
            results.append(result)
            features = self._read(result)
            if features is not None:
                read.append((result, features))
                held += features.nbytes
            if held >= min(_JOINED_BYTES, budget):
                taken, held = taken + self._fuse(read, over), 0
                if read or taken >= budget:
                    break
        if held:
            self._fuse(read, over)
        if read:  # there was no time for these
            results = results[: results.index(read[0][0])]
        after = FileStamps()
        for index, result in enumerate(results):
            if after.versions(result.pair) != versions[index]:
                results[index] = self._again(result.pair)
        return results

    def _again(self, pair: Pair) -> Result:
        """Read a pair; read it a second time if a file was replaced meanwhile."""
        versions = FileStamps().versions(pair)
        result = Result(pair, stamps_of(versions))
        features = self._read(result)
        if features is not None:
            self._fuse([(result, features)], lambda: False)
        if FileStamps().versions(pair) != versions:
            result.tensors = None
            result.error = f"{pair.image.file} or {pair.text.file}: changed while it was read"
        return result

    def _read(self, result: Result) -> Features | None:
        """The features of a pair; None if they cannot be read: the result then holds the reason."""
        read = self._reader.read(result.pair, result.stamps)
        if isinstance(read, str):
            result.error = read
            return None
        result.content = content_of(read, read.attention_mask)
        return read

    def _fuse(self, read: list[_Read], over: Stop) -> int:
        """Fuse the pairs that were read, and return the bytes of their results.

        Pairs that are done are removed from `read`. If time runs out, the others stay there
        and are done again later.
        """
        taken = 0
        left = {id(result) for result, _ in read}
        for rows, group in self._groups(read):
            if len(left) < len(read) and over():
                break
            self._fuse_into_results(rows, group)
            for result, _ in group:
                taken += result.nbytes
                left.discard(id(result))
        first = next((i for i, (result, _) in enumerate(read) if id(result) in left), len(read))
        del read[:first]
        return taken

    def _fuse_into_results(self, rows: int, group: list[_Read]) -> None:
        """Fuse some pairs; one that does not fit into memory fails alone."""
        if len(group) == 1:
            (result, features) = group[0]
            why = self._reader.too_large(result.pair, len(features.text), len(features.image))
            if why is not None:
                result.error = why
                return
        try:
            with self._cores:
                made = self._fuse_group(rows, [features for _, features in group])
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            if len(group) > 1:
                for single in group:
                    self._fuse_into_results(rows, [single])
                return
            pair = group[0][0].pair
            group[0][0].error = (
                f"{pair.image.file} and {pair.text.file}: fusing them takes more memory than there "
                "is: give fewer tokens, or use a machine with more memory"
            )
            return
        for (result, features), tensors in zip(group, made, strict=True):
            try:
                result.tensors = self._stored(result.pair, features, tensors)
                result.written = numbers_of(result.tensors.values())
                result.diagnoses, result.notes = features.diagnoses, features.notes
                if self.spec.reading.allow_nonfinite:
                    result.diagnoses = [*_nonfinite(tensors), *result.diagnoses]
            except FuseError as error:
                result.error = str(error)
            if self.spec.strict and result.diagnoses:
                result.tensors = None
                result.error = "--strict: " + " | ".join(map(str, result.diagnoses))

    def _groups(self, read: list[_Read]) -> Iterator[tuple[int, list[_Read]]]:
        """Groups of pairs that are fused together, each with its number of text rows."""
        groups: dict[tuple[object, int], list[_Read]] = {}
        for item in read:
            rows = self._text_rows(item[1])
            shape: object = item[1].image.shape
            key = (shape, rows) if rows else (id(item), len(item[1].text))
            groups.setdefault(key, []).append(item)
        for (_, rows), group in groups.items():
            step = 1 if len(group) == 1 else self._chunk(rows, group[0][1], len(group))
            for start in range(0, len(group), step):
                yield rows, group[start : start + step]

    def _text_rows(self, f: Features) -> int:
        """The number of text rows with which a pair is fused; 0 for a pair that is fused alone.

        It depends only on the pair, because the way a product is computed depends on its size. A
        few rows of zeros are added, so that texts of different lengths can be fused together.
        """
        fusions, T = self._fusions(f), len(f.text)
        row_stable = all(fusion.row_stable for fusion in fusions)
        masks = (f.image_mask, f.text_mask, f.attention_mask)
        if not row_stable or any(mask is not None for mask in masks):
            return 0
        if self.spec.direction != "text" or self.spec.pool is not None:
            return T
        return 1 if self._text_is_idle(fusions[0]) else -(-T // _ROWS) * _ROWS

    def _text_is_idle(self, fusion: Fusion) -> bool:
        """With one image token every row of a pair's result is the same, whatever its text."""
        plan, config = fusion.plan, self.spec.config
        one = plan is not None and plan.scores == "none"
        return one and not config.residual and not config.gate

    def _chunk(self, rows: int, f: Features, n: int) -> int:
        sizes = self.spec.config.sizes(n, rows, len(f.image))
        return min(fusion.chunk_samples(sizes, None) for fusion in self._fusions(f))

    def _fuse_group(self, T: int, group: list[Features]) -> list[list[NDArray[np.float32]]]:
        """The tensors of each of some pairs whose images have one shape.

        Args:
            T: rows their texts are cut or filled up to.
            group: one pair with masks, or any number without.
        """
        fusions, first = self._fusions(group[0]), group[0]
        image = np.stack([f.image for f in group])  # [n, P, Di]
        text = np.zeros((len(group), T, first.text.shape[1]), np.float32)  # [n, T, Dt]
        for rows, f in zip(text, group, strict=True):
            rows[: len(f.text)] = f.text[:T]
        image_mask = None if first.image_mask is None else first.image_mask[None]
        text_mask = None if first.text_mask is None else first.text_mask[None]
        allowed = None if first.attention_mask is None else first.attention_mask[None]
        chunk = PairChunk(image, text, image_mask, text_mask, allowed)
        made = fuse_chunk(fusions, self.spec.pool, chunk)
        if T == 1 and len(made) == 1:
            return [[np.repeat(r, len(f.text), 0)] for r, f in zip(made[0], group, strict=True)]
        return [
            [rows[: len(f.text)] if len(rows) == T else rows for rows in tensors]
            for tensors, f in zip(zip(*made, strict=True), group, strict=True)
        ]

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

    def _fusions(self, f: Features) -> list[Fusion]:
        """Those of all query sides for a pair, built when they are first needed."""
        fusions = []
        for query in query_sides(self.spec.direction):
            context = f.image if query == "text" else f.text
            key = query, len(context) == 1
            fusion = self._built.get(key)
            if fusion is None:
                with self._building:
                    fusion = self._built.get(key)
                    if fusion is None:
                        fusion = self._built[key] = self.spec.build(*key, self._weights)
            fusions.append(fusion)
        return fusions


def _nonfinite(tensors: Sequence[NDArray[np.float32]]) -> list[Diagnosis]:
    numbers = sum(tensor.size for tensor in tensors)
    return result_diagnoses.nonfinite_result(sum(map(count_nonfinite, tensors)), numbers)
