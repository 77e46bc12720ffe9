"""One job: an image file and a text file in, one file of fused rows out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli import diagnose
from fusecli.arrays import NumpyArrays, TorchArrays
from fusecli.attention import Arrays, Operands, attend, needed_parameters, prepare
from fusecli.device import numpy_threads, resolve_device
from fusecli.errors import DiagnosisError, FeatureFileError
from fusecli.job import FuseOptions, Job, open_job
from fusecli.output import FeatureWriter, StagedFile
from fusecli.plan import Plan, Sizes, choose_plan, chunk_samples, numpy_is_quicker
from fusecli.report import (
    Diagnosis,
    Report,
    describe_input,
    describe_module,
    provenance,
    sha256_of,
    stages,
)
from fusecli.weights import read_weights, seeded_weights

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
    job = open_job(options)
    for note in job.notes:
        tell(f"note: {note}")
    known = _known_diagnoses(job)
    _refuse_if_strict(options, known)
    plan, arrays, device, threads = _choose_engine(job)
    operands = prepare(_load(job, plan), job.config, plan, arrays)
    D = job.config.embed_dim
    with ExitStack() as undo:
        writer = undo.enter_context(
            FeatureWriter(
                job.output,
                job.shapes.output_shape(D),
                options.out_dtype,
                job.config.to_dict(),
            )
        )
        statistics = None
        step = chunk_samples(
            replace(_sizes(job), N=job.shapes.N, T=job.shapes.T), plan, options.max_memory
        )
        for start in range(0, job.shapes.N, step):
            stop = min(start + step, job.shapes.N)
            fused, looked = _fuse_chunk(job, operands, arrays, start, stop, start == 0)
            statistics = statistics or looked
            writer.append(fused)
            progress(stop, job.shapes.N)
        writer.finish()
        diagnoses = known + _measured_diagnoses(job, statistics)
        _refuse_if_strict(options, diagnoses)
        for diagnosis in diagnoses:
            tell(f"warning: {diagnosis}")
        engine = provenance(arrays.name, device, options.dtype, threads, job.seed)
        report = _report(job, plan, statistics, diagnoses, writer, engine)
        staged = [undo.enter_context(StagedFile(path)) for path in options.reports]
        for file in staged:
            file.write(report.to_json().encode())
            file.flush()
        writer.publish()
        for file in staged:
            file.publish()
    return report


def _known_diagnoses(job: Job) -> list[Diagnosis]:
    shapes = job.shapes
    return [
        *diagnose.one_image_token(shapes, job.config, job.image.reader.mask),
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


def _choose_engine(job: Job) -> tuple[Plan, Arrays, str, int]:
    o = job.options
    plan = choose_plan(_sizes(job), narrow=o.dtype != "float32")
    on_cpu = o.device in ("auto", "cpu") and o.dtype == "float32"
    if o.engine == "numpy" or (o.engine == "auto" and on_cpu and numpy_is_quicker(plan)):
        return plan, NumpyArrays(), "cpu", numpy_threads()
    import torch

    device = resolve_device(o.device)
    return plan, TorchArrays(device, o.dtype), device, torch.get_num_threads()


def _load(job: Job, plan: Plan) -> dict[str, NDArray[np.float32]]:
    rows = needed_parameters(job.config, plan)
    if job.weights is not None:
        return read_weights(job.weights, rows)
    return seeded_weights(job.config, job.seed or 0, rows)


def _fuse_chunk(
    job: Job,
    operands: Operands,
    arrays: Arrays,
    start: int,
    stop: int,
    look: bool,
) -> tuple[NDArray[np.float32], dict[str, Any] | None]:
    """Fused rows `[n, T, D]` of samples `start:stop`, and how spread attention was if asked."""
    image = job.image.reader.read(start, stop)  # [n, P, Di], or [1, P, Di] for one that serves all
    text = job.text.reader.read(start, stop)  # [n, T, Dt]
    (n, T, Dt), D = text.shape, job.config.embed_dim
    mask = job.image.reader.mask_rows(start, stop)
    if len(image) < n:
        # The same image for all: their texts are one long text.
        text = text.reshape(1, n * T, Dt)
    if mask is not None:
        mask = None if mask.all() else np.broadcast_to(mask, image.shape[:2])
    statistics = _look(job, operands, arrays, image, text, mask) if look else None
    fused = arrays.unload(
        attend(operands, arrays.load(image), arrays.load(text), arrays, _loaded(arrays, mask))
    ).reshape(n, T, D)
    if not job.options.allow_nonfinite and not np.isfinite(fused).all():
        raise FeatureFileError(
            f"{job.image.reader.stored.where} and {job.text.reader.stored.where}: the fused rows "
            f"are not finite in {job.options.dtype}: feature norms reach "
            f"{job.image.reader.seen.largest_norm:.3g} (image) and "
            f"{job.text.reader.seen.largest_norm:.3g} (text); normalize the features"
            + (" or say --dtype float32" if job.options.dtype != "float32" else "")
        )
    words = job.text.reader.mask_rows(start, stop)
    if words is not None:
        fused = np.where(words[..., None], fused, np.float32(0))
    return fused, statistics


def _look(
    job: Job,
    operands: Operands,
    arrays: Arrays,
    image: NDArray[np.float32],
    text: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
) -> dict[str, Any] | None:
    """Attention weights of the first few samples, for their entropy."""
    if operands.plan.scores == "none":
        return None
    T = min(text.shape[1], job.shapes.T)  # of a long text made of many, the first is enough
    each = job.config.num_heads * T * job.shapes.P
    n = max(1, min(len(text), _WEIGHTS_LOOKED_AT // each))
    weights: list[Any] = []
    mask = None if mask is None else mask[:n]
    image = arrays.load(np.ascontiguousarray(image[:n]))
    text = arrays.load(np.ascontiguousarray(text[:n, :T]))
    attend(operands, image, text, arrays, _loaded(arrays, mask), weights)
    return diagnose.attention_statistics(arrays.unload(weights[0]), mask, job.config.null_token)


def _loaded(arrays: Arrays, mask: NDArray[np.bool_] | None) -> Any:
    return None if mask is None else arrays.load(np.ascontiguousarray(mask))


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
