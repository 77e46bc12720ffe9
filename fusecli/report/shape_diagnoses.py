"""Diagnoses from the shapes and the masks of a pair, before any feature is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.features.axes import Axes, Side, is_usual_width
from fusecli.features.pair_shapes import PairShapes, is_sequence_first
from fusecli.fusion.config import FusionConfig
from fusecli.report.report import Diagnosis

if TYPE_CHECKING:
    from fusecli.features.attention_mask import Choices

Mask = NDArray[np.bool_]
_WIDE = 256  # more tokens than this may be a width


def of_pair(
    shapes: PairShapes,
    config: FusionConfig,
    sides: Sequence[Side],
    image_mask: Mask | None,
    text_mask: Mask | None,
    in_batch: bool = False,
) -> list[Diagnosis]:
    """All that shapes and masks tell of a pair, or of a stack of pairs.

    Args:
        shapes: of the pair.
        config: of the fusion.
        sides: the query sides.
        image_mask, text_mask: bool `[N, tokens]` or `[1, tokens]`, or None if all are real.
        in_batch: the pair is one of a batch, where some advice differs.
    """
    found: list[Diagnosis] = []
    for query in sides:
        mask = image_mask if query == "text" else text_mask
        found += one_image_token(shapes, config, mask, query)
    return [
        *found,
        *empty_image(image_mask),
        *same_row_counts(shapes.image, shapes.text, in_batch),
        *sequence_first(shapes),
        *transposed(shapes.image, shapes.text.width),
        *transposed(shapes.text, shapes.image.width),
    ]


def one_image_token(
    shapes: PairShapes, config: FusionConfig, mask: Mask | None, query: Side = "text"
) -> list[Diagnosis]:
    """With one key the softmax is 1 for every query; with the image as query side, with one text
    token.

    Args:
        shapes: of the job.
        config: a residual, a null token or a gate mends it; other methods keep the text anyway.
        mask: of the context side, bool `[N, P]` or `[1, P]`; it may leave one token of many.
        query: the query side.
    """
    if config.method != "attention" or config.null_token or config.residual or config.gate:
        return []
    side, tokens = ("image", shapes.P) if query == "text" else ("text", shapes.T)
    single = shapes.N if tokens == 1 else 0
    if mask is not None and tokens > 1:
        single = int((mask.sum(axis=1) == 1).sum()) * (shapes.N // len(mask))
    if not single:
        return []
    which = f"one {side} token"
    if mask is not None:
        which = f"one unmasked {side} token in {single} of {shapes.N} samples"
    more = "give patch features [P, D]" if side == "image" else "give a text of several tokens"
    return [
        Diagnosis(
            f"one-{side}-token",
            f"{which}: all fused rows of such a pair are identical and hold no {query} "
            f"information (attention over a single token weighs it 1, whatever the {query})",
            f"{more if mask is None else 'check the mask'}, or say --residual (adds the "
            f"{query}) or --null-token (weighs the {side} per {query} token)",
        )
    ]


def few_choices(choices: Choices, config: FusionConfig) -> list[Diagnosis]:
    """What an attention mask leaves to the tokens of the query side: one token each, or none.

    Args:
        choices: how many tokens each of them may attend to.
        config: a residual, a null token or a gate mends it; other methods keep the text anyway.
    """
    query = choices.query
    side = "image" if query == "text" else "text"
    if choices.empty == choices.tokens:
        return [
            Diagnosis(
                "empty-image",
                f"no {query} token may attend to any {side} token: the result holds nothing of "
                f"the {side}",
                "check the attention mask and --mask-style",
            )
        ]
    if config.method != "attention" or config.null_token or config.residual or config.gate:
        return []
    if choices.single + choices.empty < choices.tokens:
        return []
    return [
        Diagnosis(
            f"one-{side}-token",
            f"by the attention mask no {query} token may attend to more than one {side} token: "
            f"the fused rows hold no {query} information (attention over a single token weighs it "
            f"1, whatever the {query})",
            f"check the mask, or say --residual (adds the {query}) or --null-token (weighs the "
            f"{side} per {query} token)",
        )
    ]


def empty_image(mask: Mask | None) -> list[Diagnosis]:
    """No image of a job has a real token, which --allow-empty-image lets pass.

    Args:
        mask: of the image, bool `[N, P]` or `[1, P]`.
    """
    if mask is None or mask.any():
        return []
    return [
        Diagnosis(
            "empty-image",
            "every image token is masked: the result holds nothing of the image",
            "check the image mask (1 is a real token, 0 is padding)",
        )
    ]


def same_row_counts(image: Axes, text: Axes, in_batch: bool = False) -> list[Diagnosis]:
    """Two rank-2 files of as many rows are almost always one vector a sample."""
    inferred = image.origin == text.origin == "rank"
    if (image.letters, text.letters) != ("PD", "TD") or not inferred:
        return []
    rows = text.shape[0]
    if image.shape[0] != rows or rows == 1:
        return []
    remedy = "say --image-axes ND --text-axes ND (or PD and TD if they are tokens)"
    if in_batch:
        remedy = (
            "fuse such files with `fusecli fuse --image-axes ND --text-axes ND`, or list their "
            "rows in a manifest with image_row and text_row (--image-axes PD --text-axes TD if "
            "they are tokens)"
        )
    return [
        Diagnosis(
            "rows-are-samples",
            f"both files have {rows} rows, read as tokens of one pair; they are probably "
            "samples, one vector each",
            remedy,
        )
    ]


def transposed(axes: Axes, other_width: int) -> list[Diagnosis]:
    """Tokens and features look swapped: not D but another axis has the size of a feature.

    Args:
        axes: of one side.
        other_width: of the other side.
    """
    tokens = axes.token_letters
    if axes.width == other_width or not tokens:
        return []
    what = f"the {axes.side} {list(axes.shape)} is read as {axes.tokens} tokens of width "
    what += f"{axes.width}"
    if axes.origin != "rank" or len(tokens) != 1:
        longest = max(size for size in axes.shape)
        odd = axes.width * 4 < longest and not is_usual_width(axes.width)
        if axes.origin != f"--{axes.side}-axes" or not odd or not is_usual_width(longest):
            return []
        remedy = f"check --{axes.side}-axes {axes.letters}: D is the axis of features"
        what += f", and another axis has {longest}, a usual width"
        return [Diagnosis(f"{axes.side}-transposed", what, remedy)]
    wide = axes.tokens >= _WIDE and axes.tokens % 8 == 0 and not is_usual_width(axes.width)
    if axes.tokens == other_width:
        what += f", but {axes.tokens} is the width of the other side"
    elif wide and axes.width * 4 < axes.tokens:
        what += f", but {axes.tokens} is the more usual width"
    else:
        return []
    named = axes.letters[:-2] + "D" + tokens
    return [
        Diagnosis(
            f"{axes.side}-transposed",
            what,
            f"if its axes are swapped say --{axes.side}-axes {named}",
        )
    ]


def sequence_first(shapes: PairShapes) -> list[Diagnosis]:
    """Stacks whose samples may lie in the second axis."""
    return sequence_first_stacks(shapes.image, shapes.text)


def sequence_first_stacks(image: Axes | None, text: Axes | None) -> list[Diagnosis]:
    """The same of stacks whose rows are read one by one; None where no row is cut from one."""
    if image is None or text is None:
        return []
    if not is_sequence_first(image, text) or image.shape[1] == 1:
        return []
    tokens = image.shape[1]
    return [
        Diagnosis(
            "sequence-first",
            f"image {list(image.shape)} and text {list(text.shape)} are read as stacks whose "
            f"samples have {tokens} tokens each; a second axis that is equal is usually that of "
            "the samples (torch's layout without batch_first)",
            "if it is, say --text-axes TND --image-axes PND (if not, NTD and NPD)",
        )
    ]
