"""One job: an image file and a text file in, one file of fused rows out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli import diagnose
from fusecli.errors import DiagnosisError, FeatureFileError
from fusecli.fusion import AttentionFusion, LoadWeights, build_fusion
from fusecli.initial import initial_weights
from fusecli.job import FuseOptions, Job, open_job
from fusecli.output import FeatureWriter, StagedFile
from fusecli.plan import Plan, Sizes, chunk_samples
from fusecli.report import (
    Diagnosis,
    Report,
    describe_input,
    describe_module,
    provenance,
    sha256_of,
    stages,
)
from fusecli.stream import stream
from fusecli.tokens import Norms
from fusecli.weights import read_weights

__all__ = ["FuseOptions", "fuse_files"]

# Attention weights looked at for their entropy: enough for a mean, cheap beside the job.
_WEIGHTS_LOOKED_AT = 1 << 22


def fuse_files(
    options: FuseOptions,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Fuse one pair of files and write the result, whole or not at all.

    Args:
        options: what to do.
        tell: receives notes and warnings for people, one line each, as they are known.
        progress: receives samples done and samples in all.

    Returns:
        The report on what was done.

    Raises:
        FuseError: any reason why there is no result; nothing is left behind.
    """
    with ExitStack() as undo:
        job = open_job(options, undo)
        for note in job.notes:
            tell(f"note: {note}")
        known = _known_diagnoses(job)
        _refuse_if_strict(options, known)
        o = job.options
        fusion = build_fusion(
            job.config,
            _loader(job),
            _sizes(job),
            device=o.device,
            dtype=o.dtype,
            engine=o.engine,
        )
        shape = job.shapes.output_shape(job.config.embed_dim)
        writer = undo.enter_context(
            FeatureWriter(job.output, shape, options.out_dtype, job.config.to_dict())
        ).begin()
        statistics = _compute(job, fusion, writer, progress)
        writer.finish()
        diagnoses = known + _measured_diagnoses(job, statistics)
        _refuse_if_strict(options, diagnoses)
        for diagnosis in diagnoses:
            tell(f"warning: {diagnosis}")
        engine = provenance(fusion.engine, fusion.device, options.dtype, fusion.threads, job.seed)
        report = _report(job, fusion.plan, statistics, diagnoses, writer, engine)
        staged = [undo.enter_context(StagedFile(path)) for path in options.reports]
        for file in staged:
            file.begin().write(report.to_json().encode())
            file.flush()
        writer.publish()
        for file in staged:
            file.publish()
    return report


def _known_diagnoses(job: Job) -> list[Diagnosis]:
    shapes = job.shapes
    return [
        *diagnose.one_image_token(shapes, job.config, job.image.reader.mask),
        *diagnose.heads_assumed(job.heads_assumed, job.config, job.options.weights),
        *diagnose.same_row_counts(shapes.image, shapes.text),
        *diagnose.transposed(shapes.image, shapes.text.width),
        *diagnose.transposed(shapes.text, shapes.image.width),
    ]


def _measured_diagnoses(job: Job, statistics: dict[str, Any] | None) -> list[Diagnosis]:
    found: list[Diagnosis] = []
    ratio = None if statistics is None else statistics["entropy_ratio"]
    found += diagnose.uniform_attention(ratio, job.seed is not None)
    for side in (job.image, job.text):
        name, reader = side.reader.axes.side, side.reader
        found += diagnose.zero_rows(name, reader.seen, reader.mask is not None, reader.stored.where)
        found += diagnose.too_large_for(job.options.dtype, name, reader.seen)
    return found


def _refuse_if_strict(o: FuseOptions, diagnoses: list[Diagnosis]) -> None:
    if o.strict and diagnoses:
        raise DiagnosisError("--strict: " + " | ".join(str(d) for d in diagnoses))


def _sizes(job: Job) -> Sizes:
    s, c = job.shapes, job.config
    mask = job.image.reader.mask
    # Texts that share one image are computed as one long text.
    merged = s.image_shared and (mask is None or len(mask) == 1)
    N, T = (1, s.N * s.T) if merged else (s.N, s.T)
    return Sizes(
        N, T, s.P, c.text_dim, c.image_dim, c.embed_dim, c.num_heads, c.null_token, c.residual
    )


def _loader(job: Job) -> LoadWeights:
    if job.weights is not None:
        return partial(read_weights, job.weights)
    return partial(initial_weights, job.config, job.seed or 0)


@dataclass(frozen=True)
class _Made:
    """What one chunk gave."""

    fused: NDArray[np.float32]
    finite: bool
    image_norms: Norms
    text_norms: Norms
    seen: dict[str, Any] | None  # how spread attention is, in the first chunk


def _compute(
    job: Job,
    fusion: AttentionFusion,
    writer: FeatureWriter,
    progress: Callable[[int, int], None],
) -> dict[str, Any] | None:
    """Fuse all samples, chunk by chunk; gives how spread attention was in the first."""
    N = job.shapes.N
    image_reader, text_reader = job.image.reader, job.text.reader
    sizes = replace(_sizes(job), N=N, T=job.shapes.T)
    workers = fusion.workers
    step = chunk_samples(sizes, fusion.plan, job.options.max_memory, workers)
    cuts = [(start, min(start + step, N)) for start in range(0, N, step)]
    statistics: dict[str, Any] | None = None

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return image_reader.read(start, stop), text_reader.read(start, stop)

    def compute(start: int, stop: int, raw: tuple[NDArray[Any], NDArray[Any]]) -> _Made:
        image, image_norms = image_reader.tokens(raw[0], start, stop)
        text, text_norms = text_reader.tokens(raw[1], start, stop)
        mask, words = image_reader.mask_rows(start, stop), text_reader.mask_rows(start, stop)
        seen = None
        if start == 0 and N > 1:
            seen = _look(job, fusion, image, text, mask)
        weights: list[NDArray[np.float32]] = []
        fused = fusion.fuse(image, text, mask, words, weights if N == 1 else None)
        if N == 1:  # one pair gives its weights as it is fused
            seen = _statistics(job, weights, mask)
        return _Made(fused, bool(np.isfinite(fused).all()), image_norms, text_norms, seen)

    done = 0

    def write(made: _Made) -> None:
        nonlocal done, statistics
        image_reader.seen.add(made.image_norms)
        text_reader.seen.add(made.text_norms)
        if not made.finite and not job.options.allow_nonfinite:
            raise _not_finite(job)
        statistics = statistics or made.seen
        writer.append(made.fused)
        done += len(made.fused)
        progress(done, N)

    with fusion.in_parallel(workers if len(cuts) > 1 else 1):
        stream(cuts, read, compute, write, workers)
    return statistics


def _not_finite(job: Job) -> FeatureFileError:
    image, text, dtype = job.image.reader, job.text.reader, job.options.dtype
    remedy = "normalize the features" + (", or say --dtype float32" if dtype != "float32" else "")
    return FeatureFileError(
        f"{image.stored.where} and {text.stored.where}: the fused rows are not finite in {dtype}, "
        f"with feature norms up to {image.seen.largest_norm:.3g} (image) and "
        f"{text.seen.largest_norm:.3g} (text): {remedy}"
    )


def _look(
    job: Job,
    fusion: AttentionFusion,
    image: NDArray[np.float32],
    text: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
) -> dict[str, Any] | None:
    """How spread attention is in the first few samples of a stack."""
    if fusion.plan.scores == "none":
        return None
    each = job.config.num_heads * text.shape[1] * image.shape[1]
    n = max(1, min(len(image), _WEIGHTS_LOOKED_AT // each))
    weights: list[NDArray[np.float32]] = []
    mask = None if mask is None else mask[:n]
    fusion.fuse(image[:n], text[:n], mask, None, weights)
    return _statistics(job, weights, mask)


def _statistics(
    job: Job, weights: list[NDArray[np.float32]], mask: NDArray[np.bool_] | None
) -> dict[str, Any] | None:
    return diagnose.attention_statistics(np.concatenate(weights), mask, job.config.null_token)


def _report(
    job: Job,
    plan: Plan,
    statistics: dict[str, Any] | None,
    diagnoses: list[Diagnosis],
    writer: FeatureWriter,
    engine: dict[str, Any],
) -> Report:
    hashed = job.options.provenance or bool(job.options.reports)
    inputs = {}
    for side in (job.image, job.text):
        sha = sha256_of(side.file) if hashed else None
        stored, axes = side.reader.stored, side.reader.axes
        inputs[axes.side] = describe_input(stored, axes, sha, side.mask_entry)
    weights_sha = sha256_of(job.weights.file) if job.weights is not None and hashed else None
    return Report(
        inputs=inputs,
        module=describe_module(job.config, job.options.weights, weights_sha, job.seed),
        plan={
            "scores": plan.scores,
            "values": plan.values,
            "multiply_adds": plan.multiply_adds,
            "plain_multiply_adds": plan.plain,
            "why": plan.why,
        },
        stages=stages(job.shapes, job.config, plan),
        attention=statistics,
        output={
            "file": job.output,
            "key": writer.key,
            "shape": list(job.shapes.output_shape(job.config.embed_dim)),
            "axes": job.shapes.output_letters,
            "dtype": job.options.out_dtype,
            "bytes": writer.nbytes,
        },
        diagnoses=diagnoses,
        notes=job.notes,
        provenance=engine,
    )
