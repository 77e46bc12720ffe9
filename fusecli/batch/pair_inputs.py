"""Read the pairs of a batch: check them against the module, and collect diagnoses and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.run_spec import FusionSpec
from fusecli.errors import UsageError
from fusecli.features.pair_inputs import ExpectedWidths, PairInputs, check_widths
from fusecli.features.pair_shapes import PairShapes
from fusecli.features.token_reader import refuse_empty_images
from fusecli.fusion.methods import no_attention
from fusecli.fusion.results import ResultTensor, query_sides, result_tensors
from fusecli.pairs.pair import Pair
from fusecli.pairs.reader import PairFeatures, PairReader, SideFeatures
from fusecli.report import feature_diagnoses, shape_diagnoses
from fusecli.report.report import Diagnosis, Note

if TYPE_CHECKING:
    from fusecli.features.attention_mask import AttentionMask

_KEPT_SHAPES = 4096


@dataclass(slots=True)
class Features:
    """What one pair is fused from.

    Attributes:
        image: `[P, Di]`; masked tokens are zero.
        text: `[T, Dt]`; masked tokens are zero.
        image_mask: bool `[P]`, or None if all are real.
        text_mask: bool `[T]`, or None if all are real.
        tensors: of the result, with the shapes that the axes want.
        diagnoses: what may be wrong with the result, as far as the inputs tell.
        notes: what was assumed or used without being asked for.
        attention_mask: bool `[T, P]`, true where a text token may attend to an image token; None
            if all may.
    """

    image: NDArray[np.float32]
    text: NDArray[np.float32]
    image_mask: NDArray[np.bool_] | None
    text_mask: NDArray[np.bool_] | None
    tensors: list[ResultTensor]
    diagnoses: list[Diagnosis]
    notes: list[Note] = field(default_factory=list)
    attention_mask: NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        """Of the numbers."""
        return self.image.nbytes + self.text.nbytes


@dataclass(frozen=True, slots=True)
class _OfShapes:
    """What follows from the shapes of a pair and the run alone.

    Attributes:
        shapes: which; held, so that its identity stays its own.
        tensors: of the result.
        diagnoses: of a pair of these shapes without masks.
        notes: what was assumed about the shapes.
    """

    shapes: PairShapes
    tensors: list[ResultTensor]
    diagnoses: list[Diagnosis]
    notes: list[Note]


class PairChecks:
    """Reads the pairs of a run; several threads may.

    Args:
        spec: what they are read for.
    """

    def __init__(self, spec: FusionSpec) -> None:
        self._spec = spec
        self._sides = query_sides(spec.direction)
        self._reader = PairReader(spec.reading, self._check_widths)
        self._largest = feature_diagnoses.largest_norm(spec.dtype)
        self._of_shapes: dict[int, _OfShapes] = {}

    def read(self, pair: Pair) -> Features:
        """Read a pair and look at what may be wrong with its result.

        Raises:
            FuseError: why this pair cannot be fused; names the file.
        """
        read = self._reader.read(pair)
        known = self._follows(read)
        diagnoses, notes = [*known.diagnoses], known.notes
        image, text = read.image_side, read.text_side
        if image.used_mask is not None or text.used_mask is not None:
            self._refuse_empty(read)
            masks = _rows(image), _rows(text)
            diagnoses = shape_diagnoses.of_pair(
                read.shapes, self._spec.config, self._sides, *masks, in_batch=True
            )
            diagnoses += shape_diagnoses.sequence_first_stacks(*read.stacks)
            notes = [*notes, *feature_diagnoses.used_masks(image.used_mask, text.used_mask)]
        attention_mask = None
        if read.attention is not None:
            attention_mask = self._allowed(read, read.attention, diagnoses)
            note = read.attention.note
            notes = [*notes, *([] if note is None else [Note("attention-mask-assumed", note)])]
        if image.key is not None or text.key is not None:
            diagnoses += self._other_sides(read)
        if read.notes:
            notes = [*notes, *read.notes]
        for side in (image, text):
            rows = side.rows
            if rows.odd or rows.largest_norm > self._largest:
                axes = read.shapes.image if side is image else read.shapes.text
                used = None if side.mask is None or side.used_mask is None else side.used_mask
                diagnoses += feature_diagnoses.of_rows(
                    axes.side, rows, used, side.where, self._spec.dtype, True
                )
        return Features(
            image.tokens,
            text.tokens,
            image.mask,
            text.mask,
            known.tensors,
            diagnoses,
            notes,
            attention_mask,
        )

    def close(self) -> None:
        """Close the files that are kept open."""
        self._reader.close()

    def _other_sides(self, read: PairFeatures) -> list[Diagnosis]:
        o, image, text = self._spec.reading, read.image_side, read.text_side
        image_key = image.key if image.place.key is None and o.image_key is None else None
        text_key = text.key if text.place.key is None and o.text_key is None else None
        return [
            *feature_diagnoses.other_side_named("image", image_key, image.where),
            *feature_diagnoses.other_side_named("text", text_key, text.where),
        ]

    def _allowed(
        self, read: PairFeatures, mask: AttentionMask, diagnoses: list[Diagnosis]
    ) -> NDArray[np.bool_]:
        """The attention mask of a pair, `[T, P]`; adds what it leaves to the query side.

        Raises:
            UsageError: the method has no attention.
            ShapeError: a token of the query side may attend to nothing.
        """
        from fusecli.features.attention_mask import count_choices, refuse_empty

        config = self._spec.config
        if not config.how.gives_weights:
            what = "the manifest's column attention_mask"
            raise UsageError(no_attention(what, config.method))
        masks = _rows(read.image_side), _rows(read.text_side)
        for query in self._sides:
            choices = count_choices(mask, *masks, query)
            if not self._spec.reading.allow_empty_image:
                refuse_empty(mask, choices, 1)
            diagnoses += shape_diagnoses.few_choices(choices, config)
        (allowed,) = mask.rows(0, 1)
        return np.asarray(allowed, np.bool_)

    def _refuse_empty(self, read: PairFeatures) -> None:
        if self._spec.reading.allow_empty_image:
            return
        for query in self._sides:
            context = read.image_side if query == "text" else read.text_side
            if context.mask is not None and context.used_mask is not None:
                mask, side = context.used_mask, context.used_mask.side
                refuse_empty_images(mask.rows, context.where, side, mask.if_inverted)

    def _follows(self, read: PairFeatures) -> _OfShapes:
        shapes = read.shapes
        known = self._of_shapes.get(id(shapes))
        if known is not None:
            return known
        spec = self._spec
        known = _OfShapes(
            shapes,
            result_tensors(shapes, spec.config, spec.direction, spec.pool),
            [
                *shape_diagnoses.of_pair(
                    shapes, spec.config, self._sides, None, None, in_batch=True
                ),
                *shape_diagnoses.sequence_first_stacks(*read.stacks),
            ],
            [Note("reading", note) for note in shapes.notes],
        )
        if len(self._of_shapes) > _KEPT_SHAPES:
            self._of_shapes.clear()
        self._of_shapes[id(shapes)] = known
        return known

    def _check_widths(self, shapes: PairShapes, inputs: PairInputs) -> None:
        config = self._spec.config
        remedy = "pairs of other widths need a run of their own"
        exchanged = (
            "give the two folders or files in the order IMAGES TEXTS, or exchange the columns "
            "image and text of the manifest"
        )
        module = self._spec.module
        expected = ExpectedWidths(config.image_dim, config.text_dim, module, remedy, exchanged)
        check_widths(shapes, inputs, expected)


def _rows(side: SideFeatures) -> NDArray[np.bool_] | None:
    """The mask of one side as `[1, tokens]`; None if all tokens are real."""
    return None if side.mask is None else side.mask[None]
