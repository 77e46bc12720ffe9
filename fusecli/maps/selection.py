"""Decide what a picture shows, before anything is computed.

That is: the pair, its text tokens and their labels, and the places of image tokens.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import ShapeError, UsageError, counted
from fusecli.features.axes import Axes
from fusecli.features.file import FeatureFile
from fusecli.features.pair_shapes import PairShapes
from fusecli.maps.boxes import Boxes, boxes_beside, boxes_of
from fusecli.maps.token_labels import read_labels
from fusecli.maps.writer import MapOptions

MOST_ROWS = 512  # text tokens in a picture
MOST_COLUMNS = 4096  # image tokens in a picture that shows them in a row
MOST_CELLS = 1 << 22  # weights in a picture
_SPECIAL = 2  # tokens that a tokenizer puts around a sentence
_SIDE_OF_GUESS = 2  # the smallest square that is taken for a grid


@dataclass(frozen=True)
class Grid:
    """Where the image tokens lie in the picture, row by row.

    Attributes:
        rows, columns: of the grid.
        leading: tokens before the grid that have no place in the picture (a class token).
        guessed: the grid is a guess from the number of tokens.
    """

    rows: int
    columns: int
    leading: int = 0
    guessed: bool = False

    @property
    def name(self) -> str:
        """As `--grid` takes it."""
        before = f"+{self.leading}" if self.leading else ""
        return f"{self.rows}x{self.columns}{before}"


@dataclass(frozen=True)
class Drawing:
    """What is known of a picture before anything is computed.

    Attributes:
        sample: which pair.
        labels: a word for each of the T text tokens.
        rows: indices of the text tokens that are drawn; padded ones are not.
        real: bool `[P]`, image tokens that are not padding.
        grid: None where image tokens lie in a row.
        photo: uint8 `[h, w, 3]`, or None.
        photo_file: where it came from.
        boxes: where the image tokens are, if they are regions; then there is no grid.
        allowed: bool `[T, P]`, the image tokens that each text token may attend to; None if all.
    """

    sample: int
    labels: list[str]
    rows: NDArray[np.intp]
    real: NDArray[np.bool_]
    grid: Grid | None
    photo: NDArray[np.uint8] | None = None
    photo_file: str | None = None
    boxes: Boxes | None = None
    allowed: NDArray[np.bool_] | None = None


def prepare_drawing(
    options: MapOptions,
    shapes: PairShapes,
    text: str,
    image_mask: NDArray[np.bool_] | None,
    text_mask: NDArray[np.bool_] | None,
    image: FeatureFile | None = None,
) -> Drawing:
    """Decide what is drawn, and read what the picture needs besides attention.

    Args:
        options: the options.
        shapes: of the job.
        text: the text features' file.
        image_mask: bool `[N, P]` or `[1, P]`, or None.
        text_mask: bool `[N, T]` or `[1, T]`, or None.
        image: the image features' file, where boxes may lie beside the features.

    Raises:
        UsageError: the grid is not one, or there are more tokens than can be drawn.
        ShapeError: no such sample, or labels, grid or boxes do not fit the tokens.
        FeatureFileError: the tokens, the photo or the boxes cannot be read.
    """
    sample = options.sample or 0
    if not 0 <= sample < shapes.N:
        pairs = counted(shapes.N, "pair")
        raise ShapeError(f"--sample {sample}: the files hold {pairs}, counted from 0")
    real_text = _row(text_mask, sample, shapes.T)
    rows = np.flatnonzero(real_text)
    if len(rows) > MOST_ROWS:
        raise UsageError(
            f"{text}: sample {sample} has {len(rows):,} text tokens, and at most {MOST_ROWS} can "
            "be drawn; --attention FILE writes the weights of any number"
        )
    if len(rows) * shapes.P > MOST_CELLS:
        raise UsageError(
            f"{text}: sample {sample} has {len(rows):,} x {shapes.P:,} weights, and at most "
            f"{MOST_CELLS:,} can be drawn; --attention FILE writes any number"
        )
    real = _row(image_mask, sample, shapes.P)
    grid, boxes, photo, photo_size = None, None, None, None
    with_boxes = image is not None and _has_boxes(options, shapes, image)
    if options.plot is not None and not with_boxes:
        grid = choose_grid(options.grid, shapes.image)
        if grid is None:
            _check_row_of_tokens(options, shapes.P)
    if options.image_file is not None:
        from fusecli.maps.photo import read_photo_and_size

        photo, photo_size = read_photo_and_size(options.image_file)
    if with_boxes and image is not None:
        boxes = boxes_of(options, image, sample, real, photo_size)
    labels = [str(index) for index in range(shapes.T)]
    if options.tokens is not None:
        labels = _fit(
            read_labels(options.tokens, text, sample, shapes.N), rows, shapes.T, options.tokens
        )
    return Drawing(sample, labels, rows, real, grid, photo, options.image_file, boxes)


def _has_boxes(options: MapOptions, shapes: PairShapes, image: FeatureFile) -> bool:
    """Whether the picture shows regions, whose boxes are named or lie beside the features.

    Args:
        options: the options.
        shapes: of the job; a feature map has rows and columns of its own.
        image: the image features' file.
    """
    if options.plot is None or options.grid is not None or options.boxes == "none":
        return False
    return options.boxes is not None or (
        shapes.image.token_letters == "P" and boxes_beside(image, shapes.P) is not None
    )


def _check_row_of_tokens(options: MapOptions, tokens: int) -> None:
    """Raises:
    UsageError: image tokens in a row have no place in a photo, or are too many for a picture.
    """
    if tokens > MOST_COLUMNS:
        raise UsageError(
            f"--plot draws at most {MOST_COLUMNS:,} image tokens in a row, found {tokens:,}: "
            "say --grid ROWSxCOLUMNS"
        )
    if options.image_file is not None:
        raise UsageError(
            f"--image-file {options.image_file}: where in it {counted(tokens, 'image token')} "
            "would lie is not known: say --grid ROWSxCOLUMNS, or --boxes FILE for regions"
        )


def choose_grid(named: str | None, image: Axes) -> Grid | None:
    """How the image tokens lie in the picture.

    Args:
        named: `ROWSxCOLUMNS`, with `+K` for K tokens before the grid, "none" for a plain row,
            or None: a feature map's own rows and columns, else a square if there is one.
        image: the axes of the image file.

    Raises:
        UsageError: `named` is none of these.
        ShapeError: it does not fit the number of image tokens.
    """
    P = image.tokens
    if named is None:
        rows, columns = image.size("H"), image.size("W")
        if rows and columns:
            return Grid(rows, columns)
        for leading in (0, 1):
            side = math.isqrt(P - leading)
            if side >= _SIDE_OF_GUESS and side * side == P - leading:
                return Grid(side, side, leading, guessed=True)
        return None
    if named.lower() == "none":
        return None
    match = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})(?:\+([0-9]{1,6}))?", named.strip().lower())
    if match is None:
        raise UsageError(f"--grid {named}: expected ROWSxCOLUMNS such as 14x14, or none")
    rows, columns = int(match[1]), int(match[2])
    own = image.size("H"), image.size("W")
    if all(own) and own != (rows, columns):
        raise ShapeError(
            f"--grid {named}: the image {list(image.shape)} is read as {image.letters}, a feature "
            f"map of {own[0]} x {own[1]}: leave --grid out, or check --image-axes"
        )
    if rows * columns == 0:
        raise UsageError(f"--grid {named}: rows and columns must be at least 1")
    before = int(match[3] or 0)
    leading = P - rows * columns
    fits = leading == before if match[3] else leading in (0, 1)
    if not fits:
        extra = f" + {before}" if match[3] else ""
        more = (
            ""
            if match[3]
            else f" (one more may be a class token; --grid {rows}x{columns}+K leaves out K tokens "
            "before the grid)"
        )
        raise ShapeError(
            f"--grid {named}: {rows} x {columns}{extra} is "
            f"{counted(rows * columns + before, 'token')}, the image has {P}{more}"
        )
    return Grid(rows, columns, leading)


def _row(mask: NDArray[np.bool_] | None, sample: int, tokens: int) -> NDArray[np.bool_]:
    whole = np.ones((1, tokens), bool) if mask is None else mask
    row: NDArray[np.bool_] = whole[0 if len(whole) == 1 else sample]
    return row


def _fit(labels: list[str], rows: NDArray[np.intp], T: int, named: str) -> list[str]:
    """Labels of all T tokens, from those or from the real ones' only."""
    if len(labels) == T:
        return labels
    if len(labels) == len(rows):
        spread = [""] * T
        for row, label in zip(rows, labels, strict=True):
            spread[row] = label
        return spread
    real = f" (or {len(rows)}, those not masked)" if len(rows) != T else ""
    names = counted(len(labels), "token")
    padded = len(labels) < T and len(rows) == T
    hint = "; if the others are padding, mark them with --text-mask" if padded else ""
    if padded and T - len(labels) <= _SPECIAL:
        hint += "; if they are tokens of the tokenizer, such as [CLS] and [SEP], name them as well"
    raise ShapeError(f"{named}: names {names}, the text has {T}{real}{hint}")
