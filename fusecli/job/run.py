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

from fusecli.errors import DiagnosisError, FeatureFileError
from fusecli.features.atomic import StagedFile, publish_all
from fusecli.features.dtypes import storage_type
from fusecli.features.file import open_features
from fusecli.features.token_reader import RowNorms
from fusecli.features.writer import FeatureWriter
from fusecli.fusion.base import Computing, Fusion, LoadWeights
from fusecli.fusion.build import build_fusion
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.results import (
    PairChunk,
    ResultTensor,
    count_nonfinite,
    fuse_chunk,
    query_sides,
    result_tensors,
)
from fusecli.fusion.settings import Sizes
from fusecli.fusion.weights_file import read_weights
from fusecli.job.open import Job, open_job
from fusecli.job.options import FuseOptions
from fusecli.job.pipeline import stream
from fusecli.maps.writer import ChunkMaps, MapSink
from fusecli.records import record
from fusecli.report import diagnoses as diagnose
from fusecli.report.parts import AttentionMaskPart, AttentionPart, InputPart, OutputPart, TensorPart
from fusecli.report.report import (
    Diagnosis,
    Report,
    describe_attention_mask,
    describe_input,
    describe_module,
    describe_plan,
    provenance,
    sha256_of,
)
from fusecli.report.stages import all_stages

if TYPE_CHECKING:
    from fusecli.maps.view import AttentionView

# Attention weights looked at for their entropy: enough for a mean, cheap beside the job.
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
        known = _known_diagnoses(job)
        _refuse_if_strict(options, known)
        o = job.options
        layer = o.maps.layer_of(job.config)
        fusions = [
            build_fusion(
                job.config,
                _loader(job),
                _planned(job, side),
                Computing(side, o.device, o.dtype, o.engine, layer=layer or 0),
            )
            for side in query_sides(o.direction)
        ]
        tensors = result_tensors(job.shapes, job.config, o.direction, o.pool)
        first, *others = tensors
        numbers = sum(math.prod(tensor.shape) for tensor in tensors)
        further = {tensor.key: tensor.shape for tensor in others}
        metadata = job.config.to_dict()
        writer = stack.enter_context(
            FeatureWriter(job.output, first.shape, o.out_dtype, metadata, first.key, further)
        ).begin()
        maps = stack.enter_context(_map_sink(job)).begin()
        statistics, nonfinite = _compute(job, fusions, writer, maps, progress)
        job.image.file.refuse_changed()
        job.text.file.refuse_changed()
        if job.weights is not None:
            job.weights.file.refuse_changed()
        writer.finish()
        maps.finish()
        diagnoses = known + _measured_diagnoses(job, statistics, nonfinite, numbers)
        _refuse_if_strict(options, diagnoses)
        for diagnosis in diagnoses:
            tell(f"warning: {diagnosis}")
        # The less serious message comes last, and is left out where a warning says the same.
        if job.seed is not None and all(d.code != "uniform-attention" for d in diagnoses):
            job.notes.append(diagnose.untrained_note(o.weights, job.seed, job.config))
            tell(f"note: {job.notes[-1]}")
        report = _report(job, fusions, statistics, diagnoses, tensors, writer, maps)
        view = _view(job, maps)
        staged = _stage_small_files(o, report, view, stack)
        publish_all([writer.staged, *maps.staged, *staged])
    if view is not None and o.maps.show:
        show(view)
    return report


def _map_sink(job: Job) -> MapSink:
    o, drawing = job.options.maps, job.drawing
    shape = job.shapes.map_shape(job.config.num_heads if o.per_head else None)
    sample = None if drawing is None else drawing.sample
    return MapSink(o, shape, job.config.to_dict(), sample, o.layer_of(job.config))


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
    o: FuseOptions, report: Report, view: AttentionView | None, stack: ExitStack
) -> list[StagedFile]:
    """Reports and picture, complete under their temporary names."""
    contents = {path: report.to_json().encode() for path in o.reports}
    if view is not None and o.maps.plot is not None:
        from fusecli.maps.picture import draw

        contents[o.maps.plot] = draw(view, os.path.splitext(o.maps.plot)[1].lower())
    staged = []
    for path, data in contents.items():
        file = stack.enter_context(StagedFile(path)).begin()
        file.write(data)
        file.flush()
        staged.append(file)
    return staged


def _known_diagnoses(job: Job) -> list[Diagnosis]:
    gate = float(_loader(job)({"gate": slice(None)})["gate"][0]) if job.config.gate else None
    sides = query_sides(job.options.direction)
    masks = job.image.reader.mask, job.text.reader.mask
    return [
        *_other_sides(job),
        *diagnose.of_pair(job.shapes, job.config, sides, *masks),
        *(found for side in job.choices for found in diagnose.few_choices(side, job.config)),
        *(found for side in sides for found in diagnose.closed_gate(gate, side)),
        *diagnose.assumed_of_weights(job.stored, job.options.weights),
        *_guessed_grid(job),
    ]


def _other_sides(job: Job) -> list[Diagnosis]:
    o, image, text = job.options, job.image.reader.stored, job.text.reader.stored
    image_key = image.key if o.image_key is None else None
    text_key = text.key if o.text_key is None else None
    return [
        *diagnose.other_side_named("image", image_key, image.where),
        *diagnose.other_side_named("text", text_key, text.where),
    ]


def _guessed_grid(job: Job) -> list[Diagnosis]:
    drawing = job.drawing
    if drawing is None or drawing.photo_file is None or drawing.grid is None:
        return []
    grid = drawing.grid
    if not grid.guessed:
        return []
    return diagnose.guessed_grid(grid.name, job.shapes.P, drawing.photo_file)


def _measured_diagnoses(
    job: Job, statistics: AttentionPart | None, nonfinite: int, numbers: int
) -> list[Diagnosis]:
    found = diagnose.nonfinite_result(nonfinite, numbers)
    ratio = None if statistics is None else statistics.entropy_ratio
    if not job.config.gate or job.seed is None:  # a gate that starts closed has been told
        query = query_sides(job.options.direction)[0]  # whose attention was looked at
        found += diagnose.uniform_attention(ratio, job.options.weights, job.seed, query)
    for side in (job.image, job.text):
        reader = side.reader
        found += diagnose.of_rows(
            reader.axes.side,
            reader.seen,
            None if side.mask is None or reader.mask is None else side.mask.found,
            reader.stored.where,
            job.options.dtype,
        )
    return found


def _refuse_if_strict(o: FuseOptions, diagnoses: list[Diagnosis]) -> None:
    if o.strict and diagnoses:
        raise DiagnosisError("--strict: " + " | ".join(str(d) for d in diagnoses))


def _sizes(job: Job) -> Sizes:
    return job.config.sizes(job.shapes.N, job.shapes.T, job.shapes.P)


def _planned(job: Job, query: str) -> Sizes:
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


def _compute(
    job: Job,
    fusions: list[Fusion],
    writer: FeatureWriter,
    maps: MapSink,
    progress: Callable[[int, int], None],
) -> tuple[AttentionPart | None, int]:
    """Fuse all samples, chunk by chunk.

    Returns:
        How spread attention was in the first chunk, and how many numbers of the result are NaN
        or infinity.
    """
    N, pool, first = job.shapes.N, job.options.pool, fusions[0]
    image_reader, text_reader = job.image.reader, job.text.reader
    workers = first.workers
    bound = job.options.max_memory
    share = None if bound is None else bound // len(fusions)
    step = min(fusion.chunk_samples(_sizes(job), share) for fusion in fusions)
    cuts = [(start, min(start + step, N)) for start in range(0, N, step)]
    statistics: AttentionPart | None = None

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return image_reader.read(start, stop), text_reader.read(start, stop)

    def compute(start: int, stop: int, raw: tuple[NDArray[Any], NDArray[Any]]) -> _Made:
        image, image_norms = image_reader.tokens(raw[0], start, stop)
        text, text_norms = text_reader.tokens(raw[1], start, stop)
        masks = image_reader.mask_rows(start, stop), text_reader.mask_rows(start, stop)
        chunk = PairChunk(image, text, *masks, _allowed(job, start, stop))
        seen = None
        if start == 0 and N > 1:
            seen = _look(job, first, chunk)
        weights: list[NDArray[np.float32]] = []
        wanted = maps.chunk(start, stop, job.shapes.T, *masks, chunk.attention_mask)
        # One pair gives its weights as it is fused.
        looked_at = N == 1 and first.plan is not None
        rows = fuse_chunk(fusions, pool, chunk, weights if looked_at else wanted)
        if weights:
            seen = _statistics(job, weights, first.direction, chunk)
            if wanted is not None:
                wanted.extend(weights)
        nonfinite = sum(map(count_nonfinite, rows))
        return _Made(rows, nonfinite, image_norms, text_norms, wanted, seen)

    done = nonfinite = 0

    def write(made: _Made) -> None:
        nonlocal done, nonfinite, statistics
        image_reader.seen.add(made.image_norms)
        text_reader.seen.add(made.text_norms)
        if made.nonfinite and not job.options.allow_nonfinite:
            raise _not_finite(job)
        nonfinite += made.nonfinite
        statistics = statistics or made.seen
        writer.append(*made.rows)
        maps.write(made.maps)
        done += len(made.rows[0])
        progress(done, N)

    with first.in_parallel(workers if len(cuts) > 1 else 1):
        stream(cuts, read, compute, write, workers)
    return statistics, nonfinite


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
    job: Job, weights: list[NDArray[np.float32]], direction: str, chunk: PairChunk
) -> AttentionPart | None:
    masks, allowed = (chunk.text_mask, chunk.image_mask), chunk.attention_mask
    if direction == "image":
        masks = masks[::-1]
        allowed = None if allowed is None else allowed.swapaxes(1, 2)
    return diagnose.attention_statistics(
        np.concatenate(weights), *masks, job.config.null_token, allowed
    )


def _report(
    job: Job,
    fusions: list[Fusion],
    statistics: AttentionPart | None,
    diagnoses: list[Diagnosis],
    tensors: list[ResultTensor],
    writer: FeatureWriter,
    maps: MapSink,
) -> Report:
    o, first = job.options, fusions[0]
    hashed = o.provenance or bool(o.reports)
    inputs: dict[str, InputPart] = {}
    for side in (job.image, job.text):
        sha = sha256_of(side.file) if hashed else None
        stored, axes = side.reader.stored, side.reader.axes
        inputs[axes.side] = describe_input(stored, axes, sha, side.mask)
    weights_sha = sha256_of(job.weights.file) if job.weights is not None and hashed else None
    plans = [fusion.plan for fusion in fusions]
    return Report(
        inputs=inputs,
        module=describe_module(job.config, o.weights, weights_sha, job.seed),
        plan=describe_plan(plans[0], plans[1] if len(plans) > 1 else None),
        attention_mask=_described_mask(job, hashed),
        stages=all_stages(job.shapes, job.config, {f.direction: f.plan for f in fusions}),
        attention=statistics,
        output=_output(job, tensors, writer),
        maps=maps.described,
        diagnoses=diagnoses,
        notes=job.notes,
        provenance=provenance(first.engine, first.device, o.dtype, first.threads, job.seed),
    )


def _described_mask(job: Job, hashed: bool) -> AttentionMaskPart | None:
    """The report's entry for the attention mask."""
    mask, named = job.attention_mask, job.options.attention_mask
    if mask is None or named is None:
        return None
    sha = None
    if hashed and mask.stored.file != "-":
        with open_features(mask.stored.file) as file:
            sha = sha256_of(file)
    return describe_attention_mask(mask, sha)


def _output(job: Job, tensors: list[ResultTensor], writer: FeatureWriter) -> OutputPart:
    """The report's entry for the file written: its first tensor, and the list of all."""
    o = job.options
    size = storage_type(o.out_dtype).itemsize
    listed = [
        TensorPart(
            key=None if writer.key is None else tensor.key,
            shape=list(tensor.shape),
            axes=tensor.letters,
            bytes=math.prod(tensor.shape) * size,
        )
        for tensor in tensors
    ]
    return OutputPart(
        file=job.output,
        key=listed[0].key,
        shape=listed[0].shape,
        axes=listed[0].axes,
        bytes=writer.nbytes,
        dtype=o.out_dtype,
        direction=o.direction,
        pool=o.pool,
        tensors=listed,
    )
