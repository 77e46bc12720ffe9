"""What may be wrong with a job: known before it is computed, and measured while it is."""

from __future__ import annotations

from fusecli.errors import DiagnosisError
from fusecli.fusion.results import query_sides
from fusecli.job.open import Job
from fusecli.job.options import FuseOptions
from fusecli.report import feature_diagnoses, result_diagnoses, shape_diagnoses
from fusecli.report.parts import AttentionPart
from fusecli.report.report import Diagnosis


def known_diagnoses(job: Job, gate: float | None) -> list[Diagnosis]:
    """What headers, masks, options and weights tell, before anything is computed.

    Args:
        job: the job.
        gate: the value of the module's gate; None where there is none.
    """
    sides = query_sides(job.options.direction)
    masks = job.image.reader.mask, job.text.reader.mask
    of_shapes = shape_diagnoses.of_pair(job.shapes, job.config, sides, *masks)
    if job.image.reader.stored.where == job.text.reader.stored.where:
        # A tensor has as many rows as itself, and a note says that it is given twice.
        of_shapes = [found for found in of_shapes if found.code != "rows-are-samples"]
    return [
        *_other_sides(job),
        *of_shapes,
        *(found for side in job.choices for found in shape_diagnoses.few_choices(side, job.config)),
        *(found for side in sides for found in result_diagnoses.closed_gate(gate, side)),
        *result_diagnoses.assumed_of_weights(job.stored, job.options.weights),
        *_guessed_grid(job),
    ]


def _other_sides(job: Job) -> list[Diagnosis]:
    options, image, text = job.options, job.image.reader.stored, job.text.reader.stored
    image_key = image.key if options.image_key is None else None
    text_key = text.key if options.text_key is None else None
    return [
        *feature_diagnoses.other_side_named("image", image_key, image.where),
        *feature_diagnoses.other_side_named("text", text_key, text.where),
        *feature_diagnoses.swapped_names(options.image, options.text),
    ]


def _guessed_grid(job: Job) -> list[Diagnosis]:
    drawing = job.drawing
    if drawing is None or drawing.photo_file is None or drawing.grid is None:
        return []
    grid = drawing.grid
    if not grid.guessed:
        return []
    return result_diagnoses.guessed_grid(grid.name, job.shapes.P, drawing.photo_file)


def measured_diagnoses(
    job: Job, statistics: AttentionPart | None, nonfinite: int, numbers: int
) -> list[Diagnosis]:
    """What was seen while the pairs were fused.

    Args:
        job: the job.
        statistics: of the attention weights of the first pairs.
        nonfinite: numbers of the result that are NaN or infinity.
        numbers: of the result in all.
    """
    found = result_diagnoses.nonfinite_result(nonfinite, numbers)
    ratio = None if statistics is None else statistics.entropy_ratio
    if not job.config.gate or job.seed is None:  # a gate that starts closed has been told
        query = query_sides(job.options.direction)[0]  # whose attention was looked at
        found += result_diagnoses.uniform_attention(ratio, job.options.weights, job.seed, query)
    for side in (job.image, job.text):
        reader = side.reader
        found += feature_diagnoses.of_rows(
            reader.axes.side,
            reader.seen,
            None if side.mask is None or reader.mask is None else side.mask,
            reader.stored.where,
            job.options.dtype,
        )
    return found


def refuse_if_strict(options: FuseOptions, diagnoses: list[Diagnosis]) -> None:
    """Raises:
    DiagnosisError: with `--strict`, if there is a diagnosis.
    """
    if options.strict and diagnoses:
        raise DiagnosisError("--strict: " + " | ".join(str(d) for d in diagnoses))
