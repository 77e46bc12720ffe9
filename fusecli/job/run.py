"""One job: an image file and a text file in, one file of fused rows out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.atomic import StagedFile, publish_all
from fusecli.features.formats.base import OutputContents
from fusecli.features.token_reader import RowNorms
from fusecli.features.writer import FeatureWriter
from fusecli.fusion.base import Computing, Fusion, LoadWeights
from fusecli.fusion.build import build_fusion
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.literals import Side
from fusecli.fusion.results import (
    PairChunk,
    count_nonfinite,
    fuse_chunk,
    query_sides,
    result_tensors,
)
from fusecli.fusion.settings import Sizes
from fusecli.fusion.weights_file import read_weights
from fusecli.job.findings import known_diagnoses, measured_diagnoses, refuse_if_strict
from fusecli.job.open import Job, open_job
from fusecli.job.options import FuseOptions
from fusecli.job.outcome import Outcome, report_on
from fusecli.job.pipeline import stream
from fusecli.maps.writer import ChunkMaps, MapSink
from fusecli.records import record
from fusecli.report import result_diagnoses
from fusecli.report.parts import AttentionPart
from fusecli.report.report import Report

if TYPE_CHECKING:
    from fusecli.maps.view import AttentionView

# Number of attention weights whose entropy is measured: enough for a mean, and cheap.
_WEIGHTS_LOOKED_AT = 1 << 22


def fuse_files(
    options: FuseOptions,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    show: Callable[[AttentionView], None] = lambda view: None,
) -> Report:
    """Fuse one pair of files and write the result, whole or not at all.

    Args:
        options: what to do.
        tell: receives notes and warnings for people, one line each, as they are known.
        progress: receives samples done and samples in all.
        show: receives the map for the terminal, if the options ask for it.

    Returns:
        The report on what was done.

    Raises:
        FuseError: any reason why there is no result; nothing is left behind.
    """
    with ExitStack() as stack:
        job = open_job(options, stack)
        for note in job.notes:
            tell(f"note: {note}")
        known = known_diagnoses(job, _gate(job))
        refuse_if_strict(options, known)
        fusions = [_fusion(job, side) for side in query_sides(options.direction)]
        tensors = result_tensors(job.shapes, job.config, options.direction, options.pool)
        numbers = sum(math.prod(tensor.shape) for tensor in tensors)
        shapes = {tensor.key: tensor.shape for tensor in tensors}
        contents = OutputContents(shapes, options.out_dtype, job.config.to_dict())
        writer = stack.enter_context(FeatureWriter(job.output, contents, options.force)).begin()
        maps = stack.enter_context(_map_sink(job)).begin()
        computation = _Computation(job, fusions, writer, maps, progress)
        computation.run()
        statistics, nonfinite = computation.statistics, computation.nonfinite
        job.image.file.refuse_changed()
        job.text.file.refuse_changed()
        given = [given.file for given in (job.weights, job.attention_mask) if given is not None]
        for file in (*given, *job.mask_files):
            file.refuse_changed()
        writer.finish()
        maps.finish()
        diagnoses = known + measured_diagnoses(job, statistics, nonfinite, numbers)
        refuse_if_strict(options, diagnoses)
        for diagnosis in diagnoses:
            tell(f"warning: {diagnosis}")
        # The less serious message comes last, and is left out where a warning says the same.
        if job.seed is not None and all(d.code != "uniform-attention" for d in diagnoses):
            job.notes.append(result_diagnoses.untrained_note(options.weights, job.seed, job.config))
            tell(f"note: {job.notes[-1]}")
        report = report_on(job, Outcome(fusions, statistics, diagnoses, tensors, writer, maps))
        view = _view(job, maps)
        staged = _stage_small_files(options, report, view, stack)
        publish_all([writer.staged, *maps.staged, *staged])
    if view is not None and options.maps.show:
        show(view)
    return report


def _map_sink(job: Job) -> MapSink:
    options, drawing = job.options.maps, job.drawing
    shape = job.shapes.map_shape(job.config.num_heads if options.per_head else None)
    sample = None if drawing is None else drawing.sample
    layer, force = options.layer_of(job.config), job.options.force
    return MapSink(options, shape, job.config.to_dict(), sample, layer, force)


def _view(job: Job, maps: MapSink) -> AttentionView | None:
    if job.drawing is None or maps.kept is None:
        return None
    from fusecli.maps.view import view_of

    names = job.image.reader.stored.where, job.text.reader.stored.where
    origin = None if job.seed is None else f"untrained, seed {job.seed}"
    view = view_of(maps.kept, job.drawing, names, job.shapes.N, job.config.null_token, origin)
    layer = job.options.maps.layer_of(job.config)
    if layer is not None and job.config.layers > 1:
        view = replace(view, title=f"{view.title}, layer {layer} (0 to {job.config.layers - 1})")
    return view


def _stage_small_files(
    options: FuseOptions, report: Report, view: AttentionView | None, stack: ExitStack
) -> list[StagedFile]:
    """Reports and picture, complete under their temporary names."""
    contents = {path: report.to_json().encode() for path in options.reports}
    if view is not None and options.maps.plot is not None:
        from fusecli.maps.picture import draw

        contents[options.maps.plot] = draw(view, os.path.splitext(options.maps.plot)[1].lower())
    staged = []
    for path, data in contents.items():
        file = stack.enter_context(StagedFile(path, options.force)).begin()
        file.write(data)
        file.flush()
        staged.append(file)
    return staged


def _gate(job: Job) -> float | None:
    """The value of the module's gate; None where there is none."""
    return float(_loader(job)({"gate": slice(None)})["gate"][0]) if job.config.gate else None


def _fusion(job: Job, query: Side) -> Fusion:
    """The fusion for one query side."""
    options, layer = job.options, job.options.maps.layer_of(job.config)
    computing = Computing(query, options.device, options.dtype, options.engine, layer=layer or 0)
    return build_fusion(job.config, _loader(job), _planned(job, query), computing)


def _sizes(job: Job) -> Sizes:
    return job.config.sizes(job.shapes.N, job.shapes.T, job.shapes.P)


def _planned(job: Job, query: Side) -> Sizes:
    """The sizes that decide the order: texts that share one image are one long text."""
    sizes, mask = _sizes(job), job.image.reader.mask
    if query == "text" and job.shapes.image_shared and (mask is None or len(mask) == 1):
        return replace(sizes, N=1, T=sizes.N * sizes.T)
    return sizes


def _loader(job: Job) -> LoadWeights:
    if job.weights is not None:
        return partial(read_weights, job.weights)
    return partial(initial_weights, job.config, job.seed or 0)


@record
class _Made:
    """What one chunk gave."""

    rows: list[NDArray[np.float32]]  # of every tensor of the result
    nonfinite: int  # how many of their numbers are NaN or infinity
    image_norms: RowNorms
    text_norms: RowNorms
    maps: ChunkMaps | None
    seen: AttentionPart | None  # how spread attention is, in the first chunk


_Raw = tuple[NDArray[Any], NDArray[Any]]  # a chunk of the image and of the text, as stored


class _Computation:
    """Fuses all samples of a job, chunk by chunk.

    `read` and `write` are called in the order of the samples, `compute` by several threads.

    Attributes:
        statistics: how spread attention was in the first chunk; None if nobody looked.
        nonfinite: how many numbers of the result are NaN or infinity.
    """

    def __init__(
        self,
        job: Job,
        fusions: list[Fusion],
        writer: FeatureWriter,
        maps: MapSink,
        progress: Callable[[int, int], None],
    ) -> None:
        self._job, self._fusions, self._writer, self._maps = job, fusions, writer, maps
        self._progress = progress
        self._image, self._text = job.image.reader, job.text.reader
        self._done = 0
        self.statistics: AttentionPart | None = None
        self.nonfinite = 0

    def run(self) -> None:
        """Fuse all samples."""
        N, first = self._job.shapes.N, self._fusions[0]
        bound = self._job.options.max_memory
        share = None if bound is None else bound // len(self._fusions)
        sizes = _sizes(self._job)
        step = min(fusion.chunk_samples(sizes, share) for fusion in self._fusions)
        cuts = [(start, min(start + step, N)) for start in range(0, N, step)]
        with first.in_parallel(first.workers if len(cuts) > 1 else 1):
            stream(cuts, self._read, self._compute, self._write, first.workers)

    def _read(self, start: int, stop: int) -> _Raw:
        return self._image.read(start, stop), self._text.read(start, stop)

    def _compute(self, start: int, stop: int, raw: _Raw) -> _Made:
        job, N, first = self._job, self._job.shapes.N, self._fusions[0]
        image, image_norms = self._image.tokens(raw[0], start, stop)
        text, text_norms = self._text.tokens(raw[1], start, stop)
        masks = self._image.mask_rows(start, stop), self._text.mask_rows(start, stop)
        chunk = PairChunk(image, text, *masks, _allowed(job, start, stop))
        seen = None
        if start == 0 and N > 1:
            seen = _look(job, first, chunk)
        weights: list[NDArray[np.float32]] = []
        wanted = self._maps.chunk(start, stop, job.shapes.T, *masks, chunk.attention_mask)
        # With one pair, the weights come from the fusion itself.
        looked_at = N == 1 and first.plan is not None
        rows = fuse_chunk(self._fusions, job.options.pool, chunk, weights if looked_at else wanted)
        if weights:
            seen = _statistics(job, weights, first.direction, chunk)
            if wanted is not None:
                wanted.extend(weights)
        nonfinite = sum(map(count_nonfinite, rows))
        return _Made(rows, nonfinite, image_norms, text_norms, wanted, seen)

    def _write(self, made: _Made) -> None:
        self._image.seen.add(made.image_norms)
        self._text.seen.add(made.text_norms)
        if made.nonfinite and not self._job.options.allow_nonfinite:
            raise _not_finite(self._job)
        self.nonfinite += made.nonfinite
        self.statistics = self.statistics or made.seen
        self._writer.append(*made.rows)
        self._maps.write(made.maps)
        self._done += len(made.rows[0])
        self._progress(self._done, self._job.shapes.N)


def _not_finite(job: Job) -> FeatureFileError:
    image, text, dtype = job.image.reader, job.text.reader, job.options.dtype
    remedy = "normalize the features" + (", or say --dtype float32" if dtype != "float32" else "")
    return FeatureFileError(
        f"{image.stored.where} and {text.stored.where}: the fused rows are not finite in {dtype}, "
        f"with feature norms up to {image.seen.largest_norm:.3g} (image) and "
        f"{text.seen.largest_norm:.3g} (text): {remedy}"
    )


def _allowed(job: Job, start: int, stop: int) -> NDArray[np.bool_] | None:
    """The attention mask of samples `start:stop`."""
    return None if job.attention_mask is None else job.attention_mask.rows(start, stop)


def _look(job: Job, fusion: Fusion, chunk: PairChunk) -> AttentionPart | None:
    """How spread attention is in the first few samples of a stack."""
    if fusion.plan is None or fusion.plan.scores == "none":
        return None
    each = job.config.num_heads * chunk.text.shape[1] * chunk.image.shape[1]
    n = max(1, min(len(chunk.image), _WEIGHTS_LOOKED_AT // each))
    weights: list[NDArray[np.float32]] = []
    few = chunk.first(n)
    few.fuse(fusion, weights)
    return _statistics(job, weights, fusion.direction, few)


def _statistics(
    job: Job, weights: list[NDArray[np.float32]], direction: Side, chunk: PairChunk
) -> AttentionPart | None:
    masks, allowed = (chunk.text_mask, chunk.image_mask), chunk.attention_mask
    if direction == "image":
        masks = masks[::-1]
        allowed = None if allowed is None else allowed.swapaxes(1, 2)
    return result_diagnoses.attention_statistics(
        np.concatenate(weights), *masks, job.config.null_token, allowed
    )
