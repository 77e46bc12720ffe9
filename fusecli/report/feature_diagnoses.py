"""Diagnoses from the numbers and the names of features and masks."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from fusecli.features.axes import Side
from fusecli.features.mask_names import side_named
from fusecli.features.token_reader import RowStatistics
from fusecli.fusion.literals import Dtype
from fusecli.report.report import Diagnosis, Note

if TYPE_CHECKING:
    from fusecli.features.pair_masks import UsedMask

FLOAT16_MAX = 65504.0
# bfloat16 keeps 8 bits: from here on its rounding moves a feature by 0.5, and scores by more.
BFLOAT16_COARSE = 256.0


def of_rows(
    side: Side,
    rows: RowStatistics,
    mask: UsedMask | None,
    where: str,
    dtype: Dtype,
    in_batch: bool = False,
) -> list[Diagnosis]:
    """All that the features of one side tell.

    Args:
        side: which side.
        rows: what was seen of its features.
        mask: that was used, or None.
        where: file and key, for messages.
        dtype: that the module computes in.
        in_batch: the pair is one of a batch, where some advice differs.
    """
    return [
        *inverted_mask(side, rows, mask, where),
        *zero_rows(side, rows, mask, where, in_batch),
        *whole_numbers(side, rows, where),
        *too_large_for(dtype, side, rows),
    ]


def inverted_mask(
    side: Side, rows: RowStatistics, mask: UsedMask | None, where: str
) -> list[Diagnosis]:
    """A mask that is true for padding (torch's key_padding_mask) leaves only the zeros."""
    if not rows.inverted or mask is None:
        return []
    of = f" in {rows.inverted:,} of {rows.masked:,} samples with padding" if rows.masked > 1 else ""
    seems, remedy = mask.remedy
    if seems == "the mask is 1 for padding":
        seems = "the mask seems to mark padding with 1"
    else:
        seems = f"it seems that {seems}"
    right = "give a mask that is 1 for real tokens and 0 for padding"
    remedy = f"{remedy}, or {right}"
    if rows.inverted < rows.masked:  # in the other samples the opposite would be wrong as well
        remedy = f"{right}, of the same samples and with the padding at the same end"
    return [
        Diagnosis(
            f"{side}-mask-inverted",
            f"{where}: all {side} tokens that the mask calls real are zero{of}, and tokens that "
            f"it calls padding are not: {seems}",
            remedy,
        )
    ]


def zero_rows(
    side: Side, seen: RowStatistics, mask: UsedMask | None, where: str, in_batch: bool = False
) -> list[Diagnosis]:
    """Padding without a mask, or with one that is not of these features."""
    if not seen.zero_rows or seen.inverted:
        return []
    zero = f"{where}: {seen.zero_rows} of {seen.rows} {side} tokens"
    if mask is not None:
        return [
            Diagnosis(
                f"{side}-zero-rows",
                f"{zero} that the mask calls real are zero or nearly so: the mask "
                f"{mask.stored.where} is probably of other samples, or longer than the {side}",
                f"check it: of these features it marks the tokens that are {side}",
            )
        ]
    remedy = f"pass the mask with --{side}-mask"
    if in_batch:
        remedy = f"store {side}_mask beside the features, or list it in that column of a manifest"
    return [
        Diagnosis(
            f"{side}-zero-rows",
            f"{zero} are zero or nearly so, "
            f"probably padding, which takes part as if it were {side}",
            remedy,
        )
    ]


def whole_numbers(side: Side, seen: RowStatistics, where: str) -> list[Diagnosis]:
    """Token numbers, pixels or quantized features that were stored as floating point numbers."""
    if not seen.whole:
        return []
    usual = "token numbers" if side == "text" else "pixels"
    return [
        Diagnosis(
            f"{side}-whole-numbers",
            f"{where}: its numbers are whole numbers up to {seen.whole:,.0f}, as {usual} and "
            f"quantized features are, and {side} features are not",
            "give the encoder's last_hidden_state (of quantized features multiply by their scale)",
        )
    ]


def largest_norm(dtype: Dtype) -> float:
    """The length of a feature up to which a type carries it well."""
    return {"float16": FLOAT16_MAX, "bfloat16": BFLOAT16_COARSE}.get(dtype, math.inf)


def too_large_for(dtype: Dtype, side: Side, seen: RowStatistics) -> list[Diagnosis]:
    """Features beyond what a narrow type carries."""
    if seen.largest_norm <= largest_norm(dtype):
        return []
    what = (
        "float16 ends at 65504" if dtype == "float16" else "bfloat16 rounds to steps of 1 and more"
    )
    return [
        Diagnosis(
            f"{side}-too-large",
            f"{side} features have norms up to {seen.largest_norm:.4g} and {what}",
            "say --dtype float32, or normalize the features",
        )
    ]


def other_side_named(side: Side, key: str | None, where: str) -> list[Diagnosis]:
    """A tensor that no option chose, and whose name says that it belongs to the other side.

    Args:
        side: which side it is used as.
        key: its name; None where it has none, or where it was chosen by an option.
        where: file and key, for messages.
    """
    named = None if key is None else side_named(key)
    if named in (None, side):
        return []
    return [
        Diagnosis(
            f"{side}-misnamed",
            f"{where}: the file's tensor is called {key}, and it is used as the {side}",
            f"give the files in the order IMAGE TEXT, or say --{side}-key {key} if it is the "
            f"{side}",
        )
    ]


def swapped_names(image: str, text: str) -> list[Diagnosis]:
    """Both files or folders are named after the other side.

    Of a file whose own name says nothing the name of its folder counts, unless the other file
    lies in the same folder.

    Args:
        image, text: paths.
    """
    paths = [os.path.normpath(path) for path in (image, text)]
    folders = [os.path.dirname(path) for path in paths]
    names = [os.path.basename(path) for path in paths]
    if folders[0] != folders[1]:
        for i, path in enumerate(paths):
            if side_named(names[i]) is None and not os.path.isdir(path):
                names[i] = os.path.join(os.path.basename(folders[i]), names[i])
    if (side_named(names[0]), side_named(names[1])) != ("text", "image"):
        return []
    return [
        Diagnosis(
            "image-misnamed",
            f"the image is read from {names[0]} and the text from {names[1]}, which sounds like "
            "the other way round",
            "give them in the order IMAGE TEXT",
        )
    ]


def used_masks(*masks: UsedMask | None) -> list[Note]:
    """Which masks are used though no option named them."""
    notes = [mask.note for mask in masks if mask is not None]
    return [Note("mask-used", note) for note in notes if note is not None]
