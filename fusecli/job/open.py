"""Open the files of one job, and decide everything that follows from their headers."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
from fusecli.features.axes import Axes, Side
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.pair_inputs import (
    ExpectedWidths,
    PairInputs,
    SideInput,
    check_widths,
    choose_input,
    match_inputs,
    notes_on_inputs,
)
from fusecli.features.pair_shapes import PairShapes
from fusecli.features.select import file_and_key, notes_on_tensors
from fusecli.features.token_reader import TokenReader, refuse_empty_images
from fusecli.fusion.backend.device import resolve_device
from fusecli.fusion.build import check_engine
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods import no_attention
from fusecli.fusion.options import initial_config
from fusecli.fusion.results import query_sides
from fusecli.fusion.stored_module import StoredModule, module_of
from fusecli.fusion.weights_file import WeightsFile, open_weights
from fusecli.job.earlier_results import note_on_earlier
from fusecli.job.options import FuseOptions, check_options, check_targets, default_output
from fusecli.records import open_record
from fusecli.report import feature_diagnoses

if TYPE_CHECKING:
    from fusecli.features.attention_mask import AttentionMask, Choices
    from fusecli.features.pair_masks import UsedMask
    from fusecli.maps.selection import Drawing

    Masks = tuple[UsedMask | None, UsedMask | None]  # of the image and of the text


@open_record
class JobSide:
    """One opened input with its mask."""

    file: FeatureFile
    reader: TokenReader
    mask: UsedMask | None


@open_record
class Job:
    """Everything decided before the first number is read."""

    options: FuseOptions
    image: JobSide
    text: JobSide
    shapes: PairShapes
    config: FusionConfig
    mask_files: list[FeatureFile]
    attention_mask: AttentionMask | None
    choices: list[Choices]
    weights: WeightsFile | None
    seed: int | None
    stored: StoredModule | None
    notes: list[str]
    output: str
    drawing: Drawing | None


def open_job(options: FuseOptions, stack: ExitStack) -> Job:
    """Open the files, decide what everything means, and refuse what cannot be done.

    Only headers and masks are read.

    Args:
        options: what to do.
        stack: closes the files.

    Raises:
        FuseError: the options, files, weights, device or output are not usable.
    """
    output = default_output(options) if options.output is None else options.output
    check_options(options, output)
    check_targets(options, output, force=True)
    if options.device not in ("auto", "cpu"):
        resolve_device(options.device)  # fail early
    inputs = _open_inputs(options, stack)
    shapes = match_inputs(inputs, options.reading).shapes
    config, weights, seed, stored = _choose_config(options, shapes, inputs.text.where, stack)
    check_engine(config, options.engine)
    options.maps.check_method(config, options.direction)
    check_widths(shapes, inputs, _expected_widths(options, config))
    mask_files: dict[Side, FeatureFile] = {}
    masks = (
        _find_mask("image", inputs, shapes, options, mask_files, stack),
        _find_mask("text", inputs, shapes, options, mask_files, stack),
    )
    image, text = _sides(inputs, shapes, masks, options)
    _check_query_sides(options, config, image, text)
    attention_mask, choices = _attention_mask(
        options, config, shapes, (image.reader.mask, text.reader.mask), stack
    )
    drawing = None
    if options.maps.drawn:
        drawing = _prepare_drawing(options, shapes, inputs, (image, text), attention_mask)
    # Checked last, so that an existing result does not hide errors of the inputs.
    check_targets(options, output, options.force)
    job = Job(
        options=options,
        image=image,
        text=text,
        shapes=shapes,
        config=config,
        mask_files=list(mask_files.values()),
        attention_mask=attention_mask,
        choices=choices,
        weights=weights,
        seed=seed,
        stored=stored,
        notes=[],
        output=output,
        drawing=drawing,
    )
    job.notes = _notes(job, inputs, mask_files)
    return job


def _notes(job: Job, inputs: PairInputs, mask_files: dict[Side, FeatureFile]) -> list[str]:
    """What is used without being asked for, what is not used, and what is assumed.

    Args:
        job: the job.
        inputs: both sides.
        mask_files: the files of masks that options name.
    """
    masks, drawing = (job.image.mask, job.text.mask), job.drawing
    boxes = None if drawing is None or drawing.boxes is None else drawing.boxes.beside
    used = [*feature_diagnoses.used_masks(*masks), *notes_on_inputs(inputs, masks, boxes)]
    return [
        *job.shapes.notes,
        *_given_twice(inputs),
        *note_on_earlier(inputs.image.stored),
        *note_on_earlier(inputs.text.stored),
        *(() if job.stored is None else job.stored.notes(str(job.options.weights))),
        *(note.message for note in used),
        *_notes_on_mask_files(mask_files, masks, (inputs.image.file.name, inputs.text.file.name)),
        *_assumed(job.options, job.config, job.attention_mask, drawing),
    ]


def _sides(
    inputs: PairInputs, shapes: PairShapes, masks: Masks, options: FuseOptions
) -> tuple[JobSide, JobSide]:
    """Image and text with their readers."""

    def side(
        given: SideInput, axes: Axes, mask: UsedMask | None, shared: bool, repeated: bool
    ) -> JobSide:
        rows, nonfinite = None if mask is None else mask.rows, options.allow_nonfinite
        reader = TokenReader(given.stored, axes, rows, nonfinite, shared, repeated=repeated)
        return JobSide(given.file, reader, mask)

    text_shared = shapes.text_shared
    return (
        side(inputs.image, shapes.image, masks[0], shapes.image_shared, repeated=False),
        side(inputs.text, shapes.text, masks[1], text_shared, repeated=text_shared),
    )


def _check_query_sides(
    options: FuseOptions, config: FusionConfig, image: JobSide, text: JobSide
) -> None:
    """Raises:
    FuseError: a side cannot be the query side, or a sample has no token on its context side.
    """
    sides = query_sides(options.direction)
    config.check_directions(sides, options.weights)
    for query in sides:
        context = image if query == "text" else text
        if context.mask is not None and not options.allow_empty_image:
            where, mask = context.reader.stored.where, context.mask
            refuse_empty_images(mask.rows, where, mask.side, mask.if_inverted)


def _prepare_drawing(
    options: FuseOptions,
    shapes: PairShapes,
    inputs: PairInputs,
    sides: tuple[JobSide, JobSide],
    attention_mask: AttentionMask | None,
) -> Drawing:
    """What is drawn of the attention weights. Imports the drawing code."""
    from fusecli.maps.selection import prepare_drawing

    image, text = (side.reader.mask for side in sides)
    drawing = prepare_drawing(options.maps, shapes, options.text, image, text, inputs.image.file)
    if attention_mask is None:
        return drawing
    (allowed,) = attention_mask.rows(drawing.sample, drawing.sample + 1)
    return replace(drawing, allowed=allowed)


def _given_twice(inputs: PairInputs) -> list[str]:
    """The note about one tensor that is given as both sides."""
    image, text = inputs.image.stored, inputs.text.stored
    if image.where != text.where:
        return []
    return [f"{image.where} is given as the image and as the text: tokens attend to themselves"]


def _assumed(
    options: FuseOptions,
    config: FusionConfig,
    attention_mask: AttentionMask | None,
    drawing: Drawing | None,
) -> list[str]:
    """Notes on what is assumed of the attention mask, the layer and the regions."""
    boxes = None if drawing is None else drawing.boxes
    assumed = (
        None if attention_mask is None else attention_mask.note,
        options.maps.note_on_layer(config),
        None if boxes is None else f"regions: {boxes.how}",
    )
    return [note for note in assumed if note is not None]


def pair_shapes(options: FuseOptions) -> PairShapes:
    """How the two files of a job belong together, from their headers.

    Raises:
        FuseError: a file cannot be read, or the two do not belong together.
    """
    with ExitStack() as stack:
        return match_inputs(_open_inputs(options, stack), options.reading).shapes


def _open_inputs(options: FuseOptions, stack: ExitStack) -> PairInputs:
    """Both files, open as long as `stack` lasts, with the tensor of each side."""
    image_file = text_file = stack.enter_context(open_features(options.image))
    same = (
        options.image != "-"
        and os.path.exists(options.text)
        and os.path.samefile(options.image, options.text)
    )
    if not same:
        text_file = stack.enter_context(open_features(options.text))
    return PairInputs(
        choose_input(image_file, "image", options.image_key, None, options.allow_integers),
        choose_input(text_file, "text", options.text_key, None, options.allow_integers),
    )


def _choose_config(
    options: FuseOptions, shapes: PairShapes, text: str, stack: ExitStack
) -> tuple[FusionConfig, WeightsFile | None, int | None, StoredModule | None]:
    """The config, the weights file, the seed of untrained weights, and what the file says."""
    if options.weights is not None:
        weights = open_weights(options.weights, options.switches.weights_prefix)
        stack.enter_context(weights.file)
        stored = module_of(weights, options.switches, shapes.image.width)
        return stored.config, weights, weights.seed, stored
    letters = shapes.text.letters
    named = letters.replace("TD", "DT")
    swapped = f"; if its axes are swapped say --text-axes {named}" if "TD" in letters else ""
    where = f"text {text} {list(shapes.text.shape)}"
    config, seed = initial_config(
        options.switches, options.seed, shapes.image.width, shapes.text.width, where, swapped
    )
    return config, None, seed, None


def _expected_widths(options: FuseOptions, config: FusionConfig) -> ExpectedWidths:
    remedy = (
        "give weights of these widths (initial ones: fusecli init --image-dim {image_dim} "
        "--text-dim {text_dim}) or leave --weights out"
    )
    exchanged = "give the two files in the order IMAGE TEXT"
    weights = str(options.weights)
    return ExpectedWidths(config.image_dim, config.text_dim, weights, remedy, exchanged)


def _find_mask(
    side: Side,
    inputs: PairInputs,
    shapes: PairShapes,
    options: FuseOptions,
    files: dict[Side, FeatureFile],
    stack: ExitStack,
) -> UsedMask | None:
    """The mask of one side: that of the option, or the one beside the features.

    Args:
        side: whose tokens it marks.
        inputs: both sides.
        shapes: of the job.
        options: name the mask, and say what its numbers mean.
        files: receives the file of an option.
        stack: closes it.
    """
    axes = shapes.image if side == "image" else shapes.text
    option = options.image_mask if side == "image" else options.text_mask
    given = inputs.image if side == "image" else inputs.text
    if option == "none" or (option is None and len(given.file.tensors) == 1):
        return None
    from fusecli.features.mask_choice import MaskSearch, choose_mask
    from fusecli.features.pair_masks import mask_in, use_mask

    style = options.mask_style
    if option is not None:
        path, key = file_and_key(option)
        file = files[side] = stack.enter_context(open_features(path))
        return use_mask(mask_in(file, side, key), axes, shapes.N, "option", style)
    N = axes.samples or 1
    search = MaskSearch(
        *(given.file, given.stored.key, axes, N, inputs.two_tensors), other=inputs.other_key(side)
    )
    beside = choose_mask(search, style)
    if beside is None:
        return None
    return use_mask(beside, axes, shapes.N, "beside the features", style)


def _notes_on_mask_files(
    files: dict[Side, FeatureFile], masks: Masks, inputs: tuple[str, str]
) -> list[str]:
    """Notes on mask files with several tensors: which tensor was taken, and which were not.

    Files of the inputs have notes of their own, which name the masks too.
    """
    notes: list[str] = []
    for mask in masks:
        file = None if mask is None else files.get(mask.side)
        if file is None or file.name in inputs:
            continue
        if mask is not None and mask.stored.key is not None:
            notes += notes_on_tensors(file, {mask.stored.key: f"{mask.side} mask"})
    return notes


def _attention_mask(
    options: FuseOptions,
    config: FusionConfig,
    shapes: PairShapes,
    masks: tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None],
    stack: ExitStack,
) -> tuple[AttentionMask | None, list[Choices]]:
    """The attention mask, and how many context tokens it leaves to each query token.

    Args:
        options: names it.
        config: of the fusion.
        shapes: of the job.
        masks: of image and text.
        stack: closes its file.
    """
    if options.attention_mask is None:
        return None, []
    from fusecli.features.attention_mask import count_choices, read_attention_mask, refuse_empty

    if not config.how.gives_weights:
        raise UsageError(no_attention("--attention-mask", config.method))
    path, key = file_and_key(options.attention_mask)
    file = stack.enter_context(open_features(path))
    mask = read_attention_mask(file, key, shapes, options.mask_style)
    choices = [count_choices(mask, *masks, query) for query in query_sides(options.direction)]
    for side in () if options.allow_empty_image else choices:
        refuse_empty(mask, side, shapes.N)
    return mask, choices
