"""Regions of an image: the boxes that lie beside their features, and where they are in the picture.

Detectors store a box for each region as `boxes`, `bbox` or `normalized_boxes`, in one of several
forms. The form is told by the numbers wherever only one fits, and else by `--box-format` and
`--box-units`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.select import file_and_key, tensor_of
from fusecli.features.tensor import StoredTensor
from fusecli.maps.box_forms import IN_WORDS, TOLERANCE, corners_of, form_of, other_form, units_of
from fusecli.maps.literals import BoxUnits

if TYPE_CHECKING:
    from fusecli.maps.writer import MapOptions

# Boxes that need no size of the image come first.
_NAMES = (
    "normalized_boxes", "normalized_bbox", "normalized_bboxes", "norm_boxes", "norm_bbox",
    "norm_bb", "visual_pos",  # the last is LXMERT's
    "boxes", "bbox", "bboxes", "box", "image_boxes", "image_bbox", "image_bboxes",
    "region_boxes", "bounding_boxes", "pred_boxes", "rois",
)  # fmt: skip
# Of other names that are those of boxes if there are as many as image tokens: roi_boxes.
_LAST_WORDS = ("boxes", "bbox", "bboxes", "proposals", "rois", "xyxy", "xywh")
_WIDTHS = ("image_w", "image_width", "img_w", "img_width")
_HEIGHTS = ("image_h", "image_height", "img_h", "img_height")
# Regions that a detector finds reach over most of an image.
_MANY_BOXES, _SMALL_PART = 8, 0.6
_COLUMNS = range(4, 8)  # after the four of a box some encoders store its area, width and height


@dataclass(frozen=True)
class Boxes:
    """Where the image tokens of one pair are in the picture.

    Attributes:
        places: float64 `[P, 4]`: left, top, right, bottom as shares of the picture's width and
            height; NaN for padded tokens.
        aspect: width over height of the picture.
        how: how the numbers were understood, in words.
        beside: the key of the boxes, where they are in the file of the features.
    """

    places: NDArray[np.float64]
    aspect: float
    how: str
    beside: str | None = None

    def painted(self, values: NDArray[np.float64], w: int, h: int) -> NDArray[np.float64]:
        """The regions' values as a picture; where regions overlap, the largest value.

        Args:
            values: float64 `[P]`; regions with NaN are left out.
            w, h: pixels of the picture.

        Returns:
            float64 `[h, w]`, NaN outside all regions.
        """
        picture = np.full((h, w), np.nan)
        known = np.isfinite(values) & np.isfinite(self.places).all(axis=1)
        order = np.argsort(values, kind="stable")
        for index in order[known[order]]:
            x0, y0, x1, y1 = self.places[index]
            top, bottom = _pixels(y0, y1, h)
            left, right = _pixels(x0, x1, w)
            picture[top:bottom, left:right] = values[index]
        return picture


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last; never none."""
    first = min(size - 1, max(0, round(low * size)))
    return first, min(size, max(first + 1, round(high * size)))


@dataclass(frozen=True)
class _Frame:
    """What the coordinates are measured in.

    Attributes:
        width, height: of the image in pixels, or None if nothing says them.
        source: where this size comes from, in words.
    """

    width: float | None
    height: float | None
    source: str


def find_boxes(file: FeatureFile) -> StoredTensor | None:
    """The boxes beside the features; None where there are none.

    Args:
        file: the image features' file.
    """
    by_name = {re.split(r"[./]", key)[-1].lower(): key for key in sorted(file.tensors)}
    for name in _NAMES:
        stored = file.tensors.get(by_name.get(name, ""))
        if stored is not None and _shaped_like_boxes(stored.shape):
            return stored
    return None


def boxes_beside(file: FeatureFile, tokens: int) -> StoredTensor | None:
    """The boxes that a picture uses without `--boxes`; None where there are none.

    Args:
        file: the image features' file.
        tokens: image tokens of a pair. Under a name that is no usual one of boxes, there has to be
            a box for each of them.
    """
    return find_boxes(file) or _called_boxes(file, tokens)


def _called_boxes(file: FeatureFile, tokens: int) -> StoredTensor | None:
    """The one tensor whose name ends as those of boxes do, with a box for each image token."""
    found = []
    for key in file.tensors:
        words = re.split(r"[^a-z]+", key.lower())
        shape = file.shape_of(key)
        if words[-1] in _LAST_WORDS and _shaped_like_boxes(shape) and shape[-2] == tokens:
            found.append(file.tensors[key])
    return found[0] if len(found) == 1 else None


def _shaped_like_boxes(shape: Sequence[int]) -> bool:
    return len(shape) in (2, 3) and shape[-1] in _COLUMNS


def boxes_of(
    options: MapOptions,
    image: FeatureFile,
    sample: int,
    real: NDArray[np.bool_],
    photo_size: tuple[int, int] | None,
) -> Boxes | None:
    """The boxes of one pair's image tokens.

    Args:
        options: which boxes are meant; without `--boxes` those beside the features.
        image: the image features' file.
        sample: which pair of a stack.
        real: bool `[P]`, image tokens that are not padding; others need no box.
        photo_size: width and height of the photo in pixels, if there is one.

    Returns:
        None where there are no boxes.

    Raises:
        ShapeError: there is not one box for each image token.
        FeatureFileError: the boxes cannot be read, or are none of this photo.
        UsageError: their form cannot be told.
    """
    if options.boxes == "none":
        return None
    if options.boxes is None:
        beside = boxes_beside(image, len(real))
        return None if beside is None else _read(beside, image, options, sample, real, photo_size)
    path, key = file_and_key(options.boxes)
    with open_features(path) as file:
        stored = _named(file, key)
        return _read(stored, file, options, sample, real, photo_size)


def _named(file: FeatureFile, key: str | None) -> StoredTensor:
    """The boxes in a file of their own."""
    if key is not None:
        return tensor_of(file, key)
    if len(file.tensors) == 1:
        return next(iter(file.tensors.values()))
    found = find_boxes(file)
    if found is None:
        raise FeatureFileError(
            f"{file.where}: none of its tensors is called boxes: say --boxes {file.name}:NAME; "
            f"{file.listed}"
        )
    return found


def _read(
    stored: StoredTensor,
    file: FeatureFile,
    options: MapOptions,
    sample: int,
    real: NDArray[np.bool_],
    photo_size: tuple[int, int] | None,
) -> Boxes:
    tokens = len(real)
    shape = stored.shape
    if not _shaped_like_boxes(shape) or shape[-2] != tokens:
        raise ShapeError(
            f"{stored.where}: boxes have shape {list(shape)}, expected [{tokens}, 4], one for each "
            "image token; --boxes FILE:KEY names others, --boxes none ignores them"
        )
    if len(shape) == 3 and shape[0] != 1 and sample >= shape[0]:
        raise ShapeError(f"{stored.where}: holds the boxes of {shape[0]} samples, none of {sample}")
    stored.check_readable()
    values = np.asarray(stored.read(), np.float64)
    if values.ndim == 3:
        values = values[0 if len(values) == 1 else sample]
    known = values[real]
    if not np.isfinite(known).all():
        raise FeatureFileError(f"{stored.where}: holds boxes that are not finite numbers")
    frame = _frame_of(file, sample, photo_size)
    units = options.box_units or units_of(known[:, :4], stored)
    limit = (1.0, 1.0) if units == "relative" else _limit(frame)
    layout, certain = form_of(known, limit, options.box_format, stored)
    corners = corners_of(values[:, :4], layout)
    if units == "pixels":
        largest = corners[real][:, 2:].max(axis=0) if real.any() else np.ones(2)
        w, h = limit or (max(float(largest[0]), 1.0), max(float(largest[1]), 1.0))
        corners = corners / [w, h, w, h]
    else:
        w, h = _limit(frame) or (1.0, 1.0)
    corners[~real] = np.nan
    doubt = "" if certain else f" (assumed: {other_form(layout)} is possible too, --box-format)"
    size = frame.source if frame.width else _unknown_size(units)
    if units == "pixels" and photo_size is not None and (frame.width, frame.height) == photo_size:
        doubt += _if_small(corners[real][:, 2:])
    words = "in pixels" if units == "pixels" else "in shares of the size"
    how = f"{stored.where}, read as {IN_WORDS[layout]}{doubt}, {words}{size}"
    beside = stored.key if options.boxes is None else None
    return Boxes(np.clip(corners, 0, 1), w / h, how, beside)


def _if_small(ends: NDArray[np.float64]) -> str:
    """That boxes reach over a small part of the photo only, as those of a smaller image do.

    Args:
        ends: `[boxes, 2]`, the right and lower ends, in shares of the photo.
    """
    if len(ends) < _MANY_BOXES or (reach := float(ends.max())) > _SMALL_PART:
        return ""
    return f" (they end at {reach:.0%} of it: if they were made on a smaller photo, give that)"


def _unknown_size(units: BoxUnits) -> str:
    if units == "relative":
        return "; nothing says the image's proportions, it is drawn as a square"
    return "; nothing says the image's size, it is drawn as large as the boxes reach"


def _limit(frame: _Frame) -> tuple[float, float] | None:
    return None if frame.width is None or frame.height is None else (frame.width, frame.height)


def _frame_of(file: FeatureFile, sample: int, photo_size: tuple[int, int] | None) -> _Frame:
    """The size of the image that the boxes were made on.

    Raises:
        FeatureFileError: the photo has other proportions than that image.
    """
    width, height = (_number(file, names, sample) for names in (_WIDTHS, _HEIGHTS))
    if width is None or height is None:
        if photo_size is None:
            return _Frame(None, None, "")
        return _Frame(*photo_size, " of the photo")
    if photo_size is not None:
        w, h = photo_size
        if abs(w * height / (h * width) - 1) > 2 * TOLERANCE + 2 / min(w, h):
            raise FeatureFileError(
                f"{file.where}: its boxes are of an image of {width:g} x {height:g} pixels, and "
                f"the photo has {w} x {h}: give the photo that the features were made from"
            )
    return _Frame(width, height, f" of an image of {width:g} x {height:g}")


def _number(file: FeatureFile, names: Sequence[str], sample: int) -> float | None:
    """A size that is stored beside the boxes: one number, or one for each sample."""
    for name in names:
        stored = file.tensors.get(name)
        if stored is None or len(stored.shape) > 1:
            continue
        values = np.asarray(stored.read(), np.float64).reshape(-1)
        if len(values) == 1 or sample < len(values):
            value = float(values[0 if len(values) == 1 else sample])
            if np.isfinite(value) and value >= 1:
                return value
    return None
