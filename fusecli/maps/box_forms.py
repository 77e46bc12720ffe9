"""The forms in which the numbers of boxes come: told by the numbers where only one form fits."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, UsageError
from fusecli.features.tensor import StoredTensor
from fusecli.maps.literals import BoxFormat, BoxUnits

TOLERANCE = 0.01  # of the image's size, for what rounding does to a box at its edge
IN_WORDS: dict[BoxFormat, str] = {
    "xyxy": "left, top, right, bottom",
    "yxyx": "top, left, bottom, right",
    "xywh": "left, top, width, height",
    "cxcywh": "centre x, centre y, width, height",
}


def units_of(values: NDArray[np.float64], stored: StoredTensor) -> BoxUnits:
    """Coordinates up to 1 are shares of the image's size.

    Raises:
        FeatureFileError: the name says they are, and the numbers are not.
    """
    relative = values.size == 0 or float(np.abs(values).max()) <= 1 + TOLERANCE
    if not relative and re.search(r"(^|[./])norm", (stored.key or "").lower()):
        raise FeatureFileError(
            f"{stored.where}: is named as normalized boxes and has coordinates up to "
            f"{np.abs(values).max():g}: say --box-units pixels, or --boxes none"
        )
    return "relative" if relative else "pixels"


def form_of(
    values: NDArray[np.float64],
    limit: tuple[float, float] | None,
    named: BoxFormat | None,
    stored: StoredTensor,
) -> tuple[BoxFormat, bool]:
    """The form of the boxes, and whether no other one is possible.

    Args:
        values: `[boxes, columns]`.
        limit: width and height that no box exceeds, in the units of the boxes.
        named: what `--box-format` says.
        stored: for messages.
    """
    forms: list[BoxFormat] = ["xyxy"] if values.shape[1] > 4 else ["xyxy", "xywh", "cxcywh"]
    fit = [form for form in forms if _fits(corners_of(values[:, :4], form), limit)]
    if named is not None:
        if not _fits(corners_of(values[:, :4], named), limit):
            raise FeatureFileError(_misfit(values, limit, f"as --box-format {named}", stored))
        return named, True
    if not fit:
        raise FeatureFileError(_misfit(values, limit, "in any form that fusecli knows", stored))
    if fit[0] == "xyxy":
        # Without a limit any corner could be a width: then the usual form is not doubted.
        return "xyxy", limit is None or len(fit) == 1
    if len(fit) > 1:
        raise UsageError(
            f"{stored.where}: its boxes can be {IN_WORDS['xywh']} or {IN_WORDS['cxcywh']}: say "
            "--box-format xywh or --box-format cxcywh"
        )
    return fit[0], True


def _misfit(
    values: NDArray[np.float64],
    limit: tuple[float, float] | None,
    form: str,
    stored: StoredTensor,
) -> str:
    inside = "" if limit is None else f" inside {limit[0]:g} x {limit[1]:g}"
    return (
        f"{stored.where}: its numbers, up to {np.abs(values[:, :4]).max():g}, are no "
        f"boxes{inside} {form}: give the photo that they "
        "were made on, name their form with --box-format and --box-units, or say --boxes none"
    )


def corners_of(values: NDArray[np.float64], form: BoxFormat) -> NDArray[np.float64]:
    """`[boxes, 4]` as left, top, right, bottom."""
    a, b, c, d = values.T
    if form == "xyxy":
        sides = (a, b, c, d)
    elif form == "yxyx":
        sides = (b, a, d, c)
    elif form == "xywh":
        sides = (a, b, a + c, b + d)
    else:
        sides = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    return np.stack(sides, axis=1)


def _fits(corners: NDArray[np.float64], limit: tuple[float, float] | None) -> bool:
    left, top, right, bottom = corners.T
    if (right < left).any() or (bottom < top).any():
        return False
    w, h = limit if limit is not None else (np.inf, np.inf)
    slack_x, slack_y = ((TOLERANCE * max(1.0, float(v)) if np.isfinite(v) else 1.0) for v in (w, h))
    low = bool((left >= -slack_x).all() and (top >= -slack_y).all())
    return low and bool((right <= w + slack_x).all() and (bottom <= h + slack_y).all())


def other_form(layout: BoxFormat) -> str:
    return IN_WORDS["xywh" if layout != "xywh" else "xyxy"]
