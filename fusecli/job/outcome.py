"""The report on a job that is done."""

from __future__ import annotations

import math

from fusecli.features.dtypes import storage_type
from fusecli.features.file import sha256_of
from fusecli.features.writer import FeatureWriter
from fusecli.fusion.base import Fusion
from fusecli.fusion.results import ResultTensor
from fusecli.job.open import Job
from fusecli.maps.writer import MapSink
from fusecli.records import record
from fusecli.report.parts import AttentionMaskPart, AttentionPart, InputPart, OutputPart, TensorPart
from fusecli.report.report import (
    Diagnosis,
    Report,
    describe_attention_mask,
    describe_input,
    describe_module,
    describe_plan,
    provenance,
)
from fusecli.report.stages import all_stages


@record
class Outcome:
    """What a job made.

    Attributes:
        fusions: one for each query side.
        statistics: of the attention weights of the first pairs, or None.
        diagnoses: all of them.
        tensors: of the result.
        writer, maps: with what they have written.
    """

    fusions: list[Fusion]
    statistics: AttentionPart | None
    diagnoses: list[Diagnosis]
    tensors: list[ResultTensor]
    writer: FeatureWriter
    maps: MapSink


def report_on(job: Job, outcome: Outcome) -> Report:
    """The report on a job that is done."""
    options, fusions = job.options, outcome.fusions
    first = fusions[0]
    hashed = options.provenance or bool(options.reports)
    inputs: dict[str, InputPart] = {}
    for side in (job.image, job.text):
        sha = sha256_of(side.file) if hashed else None
        stored, axes = side.reader.stored, side.reader.axes
        inputs[axes.side] = describe_input(stored, axes, sha, side.mask)
    weights_sha = sha256_of(job.weights.file) if job.weights is not None and hashed else None
    plans = [fusion.plan for fusion in fusions]
    return Report(
        inputs=inputs,
        module=describe_module(job.config, options.weights, weights_sha, job.seed),
        plan=describe_plan(plans[0], plans[1] if len(plans) > 1 else None),
        attention_mask=_described_mask(job, hashed),
        stages=all_stages(job.shapes, job.config, {f.direction: f.plan for f in fusions}),
        attention=outcome.statistics,
        output=_output(job, outcome.tensors, outcome.writer),
        maps=outcome.maps.described,
        diagnoses=outcome.diagnoses,
        notes=job.notes,
        provenance=provenance(first.engine, first.device, options.dtype, first.threads, job.seed),
    )


def _described_mask(job: Job, hashed: bool) -> AttentionMaskPart | None:
    """The report's entry for the attention mask."""
    mask = job.attention_mask
    if mask is None:
        return None
    return describe_attention_mask(mask, sha256_of(mask.file) if hashed else None)


def _output(job: Job, tensors: list[ResultTensor], writer: FeatureWriter) -> OutputPart:
    """The report's entry for the file written: its first tensor, and the list of all."""
    options = job.options
    size = storage_type(options.out_dtype).itemsize
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
        dtype=options.out_dtype,
        direction=options.direction,
        pool=options.pool,
        tensors=listed,
    )
