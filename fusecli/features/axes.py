"""What the axes of a feature file mean. No arrays and no files in here, only sizes.

The letters, used everywhere in fusecli:

    N        samples (pairs) in a stack
    T        text tokens of a pair
    P        image tokens of a pair: patches, regions, or 1 for one global vector
    H W      rows and columns of a convolutional feature map; P = H * W, row by row
    Dt Di    width of a text feature, of an image feature, as they lie in the files
    D        embed_dim, the module's width
    H d      num_heads and head_dim = D / H (in shapes of the module, not of files)
"""

from __future__ import annotations

import math
from dataclasses import field

from fusecli.errors import ShapeError, UsageError, shortened
from fusecli.features.literals import Side as Side
from fusecli.records import record

LARGEST_SIZE = 1 << 20  # wider than any encoder; keeps a hostile header from costing anything
MAX_RANK = 4
_SMALLEST_PICTURE = 112  # pixels a side
_SMALLEST_WIDTH = 16  # of features that are not as wide as those of the other side
_TOKEN_LETTER: dict[Side, str] = {"image": "P", "text": "T"}
_BY_RANK: dict[Side, dict[int, str]] = {
    "image": {1: "D", 2: "PD", 3: "NPD"},
    "text": {1: "D", 2: "TD", 3: "NTD"},
}
_EXAMPLES: dict[Side, str] = {
    "image": "D, PD, ND, NPD, DHW, HWD, NDHW, NHWD",
    "text": "D, TD, ND, NTD",
}


@record
class Axes:
    """One letter for every axis of one side's file.

    Attributes:
        side: "image" or "text".
        letters: one of N, P, T, H, W, D for each axis, in the file's order.
        shape: the sizes, in the file's order.
        origin: how the letters were found: "rank", an option's name, or a reason in words.
    """

    side: Side
    letters: str
    shape: tuple[int, ...]
    origin: str

    def size(self, letter: str) -> int | None:
        """Length of the axis with this letter; None where there is none."""
        return self.shape[self.letters.index(letter)] if letter in self.letters else None

    @property
    def samples(self) -> int | None:
        """N, or None for a file that holds one sample without an axis for it."""
        return self.size("N")

    @property
    def token_letters(self) -> str:
        """The axes that are tokens: "T", "P", "HW", or "" for one token without an axis."""
        return "HW" if "H" in self.letters else self.letters.strip("ND")

    @property
    def tokens(self) -> int:
        """Tokens of one sample: T, P, H * W, or 1."""
        return math.prod(self.size(letter) or 0 for letter in self.token_letters)

    @property
    def width(self) -> int:
        """Width of one feature: Dt or Di."""
        return self.size("D") or 0

    @property
    def order(self) -> tuple[int, ...]:
        """The permutation that brings the axes into the order N, tokens, D."""
        wanted = [c for c in "N" + self.token_letters + "D" if c in self.letters]
        return tuple(self.letters.index(c) for c in wanted)

    @property
    def meaning(self) -> dict[str, int]:
        """Letter to size, for the report."""
        return dict(zip(self.letters, self.shape, strict=True))


@record
class PairShapes:
    """How an image file and a text file belong together.

    Attributes:
        image, text: the axes of both files.
        N: samples; 1 where neither file has an axis for them.
        image_shared: one image serves all N text samples.
        text_shared: one text serves all N images.
        notes: what was taken to be the case, in words, where another reading was possible.
    """

    image: Axes
    text: Axes
    N: int
    image_shared: bool
    notes: tuple[str, ...] = field(default=())
    text_shared: bool = False

    @property
    def T(self) -> int:  # noqa: N802
        return self.text.tokens

    @property
    def P(self) -> int:  # noqa: N802
        return self.image.tokens

    def output_shape(self, width: int, side: Side = "text") -> tuple[int, ...]:
        """Shape of a fused vector per token of one side, in the order N, tokens, D."""
        sizes = {"N": self.N, "T": self.T, "P": self.P, "D": width}
        return tuple(sizes[letter] for letter in self.output_letters_of(side))

    def map_shape(self, heads: int | None) -> tuple[int, ...]:
        """Shape of the attention maps: `[N, H, T, P]`, N where the result has it.

        Args:
            heads: H, or None for the mean over heads.
        """
        stacked = (self.N,) if self.text.samples is not None or self.text_shared else ()
        return (*stacked, *(() if heads is None else (heads,)), self.T, self.P)

    @property
    def output_letters(self) -> str:
        """The letters of `output_shape`."""
        return self.output_letters_of("text")

    def output_letters_of(self, side: Side) -> str:
        """The letters of one side's result; cells of a feature map are tokens there."""
        own = self.text if side == "text" else self.image
        stacked = "N" in self.text.letters or "N" in own.letters or self.text_shared
        samples = "N" if stacked else ""
        tokens = _TOKEN_LETTER[own.side] if own.token_letters else ""
        return f"{samples}{tokens}D"


def read_axes(side: Side, shape: tuple[int, ...], named: str | None, where: str) -> Axes:
    """Name the axes of one file, from the option or from the rank.

    Args:
        side: "image" or "text".
        shape: the file's shape.
        named: what `--image-axes` / `--text-axes` says, or None.
        where: file and key, for errors.

    Raises:
        UsageError: the option is not a possible naming.
        ShapeError: the shape does not fit it, has no meaning by itself, or is empty.
    """
    if named is not None:
        axes = _named_axes(side, shape, named, where)
    else:
        _refuse_pixels(side, shape, where)
        letters = _BY_RANK[side].get(len(shape))
        if letters is None:
            raise ShapeError(_no_reading(side, shape, where))
        axes = Axes(side, letters, shape, "rank")
    _refuse_impossible(axes, where)
    return axes


def match_pair(image: Axes, text: Axes, image_where: str, text_where: str) -> PairShapes:
    """Decide which image belongs to which text sample.

    Args:
        image, text: the axes as `read_axes` found them.
        image_where, text_where: file and key of each, for errors.

    Raises:
        ShapeError: the numbers of samples do not belong together.
    """
    notes: list[str] = []
    both = f"{image_where} {_shown(image.shape)} and {text_where} {_shown(text.shape)}"
    image = _rows_of_image(image, text, both, notes)
    texts, images = text.samples, image.samples
    several_texts, several_images = (texts or 1) > 1, (images or 1) > 1
    if several_texts and several_images and texts != images:
        raise ShapeError(f"{both}: {_other_counts(image, text)}")
    if several_images and not several_texts:
        _refuse_unclear_stack(image, text, both)
        notes.append(f"one text is shared by all {images} images")
    if several_texts and not several_images:
        notes.append(f"one image is shared by all {texts} text samples")
    return PairShapes(
        image,
        text,
        max(texts or 1, images or 1),
        several_texts and not several_images,
        tuple(notes),
        several_images and not several_texts,
    )


def _rows_of_image(image: Axes, text: Axes, both: str, notes: list[str]) -> Axes:
    """The image's axes, where its rows may be the tokens of one image or a vector a sample."""
    N = text.samples
    if N is None or N == 1 or image.letters != "PD" or image.origin != "rank":
        return image
    rows = image.shape[0]
    if rows == N:
        notes.append(
            f"the image's {rows} rows are read as one vector for each of the {N} text samples; "
            "if they are the tokens of one image for all samples, say --image-axes PD"
        )
        return Axes("image", "ND", image.shape, f"as many rows as text samples ({N})")
    if rows != 1:
        also = ""
        if text.letters == "NTD" and text.origin == "rank" and text.shape[1] == rows:
            also = (
                "say --text-axes TND --image-axes ND if the second axis of the text is that of the "
                f"samples ({rows} of them, torch's layout without batch_first), "
            )
        elif N % rows == 0:
            also = (
                f"for {N // rows} texts of each image list every pair in a manifest with the "
                "columns image,image_row,text,text_row, "
            )
        raise ShapeError(
            f"{both}: the text has {N} samples, the image {rows} rows: {also}say --image-axes PD "
            f"if they are the tokens of one image for all samples, or give {N} rows"
        )
    return image


def _other_counts(image: Axes, text: Axes) -> str:
    """Why two stacks do not belong together, and how they might be meant."""
    images, texts = image.samples or 1, text.samples or 1
    counts = f"the image has {images} samples, the text {texts}"
    for axes, other in ((text, images), (image, texts)):
        if axes.letters in ("NTD", "NPD") and axes.origin == "rank" and axes.shape[1] == other:
            named = f"{axes.letters[1]}ND"
            return (
                f"{counts}, and the {axes.side} has {other} in its second axis: if that is the "
                f"axis of samples (torch's layout without batch_first), say --{axes.side}-axes "
                f"{named}"
            )
    if is_sequence_first(image, text):
        return (
            f"{counts}, and both have {image.shape[1]} in their second axis: if that is the axis "
            "of samples (torch's layout without batch_first), say --text-axes TND "
            "--image-axes PND"
        )
    if maps := _map_names(image, text.width):
        return f"{counts}; for one feature map for all samples say --image-axes {maps[0]}"
    more, fewer = max(images, texts), min(images, texts)
    if more % fewer == 0:
        of = ("texts", "image") if texts > images else ("images", "text")
        return (
            f"{counts}: for {more // fewer} {of[0]} of each {of[1]}, list every pair in a manifest "
            "with the columns image,image_row,text,text_row: fusecli batch --manifest FILE"
        )
    return counts


def _refuse_unclear_stack(image: Axes, text: Axes, both: str) -> None:
    """Raises:
    ShapeError: the image may be a stack that shares one text, and may as well be something else.
    """
    images = image.samples or 1
    counts = f"{both}: the image has {images} samples, the text one"
    if text.letters == "TD" and text.origin == "rank" and text.shape[0] == images:
        raise ShapeError(
            f"{counts}, of as many rows: say --text-axes ND if each text row is a sample, or "
            "--text-axes TD if they are the tokens of one text for all images"
        )
    if image.letters != "NPD" or image.origin != "rank":
        return
    if maps := _map_names(image, text.width):
        raise ShapeError(
            f"{counts}: say --image-axes {maps[0]} for one feature map, or --image-axes NPD for "
            f"{images} images that share the text"
        )
    if image.shape[1] == 1:
        raise ShapeError(
            f"{counts}: say --image-axes PND for {images} tokens of one image, or --image-axes "
            f"NPD for {images} images that share the text"
        )


def is_sequence_first(image: Axes, text: Axes) -> bool:
    """Whether two stacks may have their samples in the second axis.

    That is torch's layout where batch_first is not set: `[T, N, D]` and `[P, N, D]`. The second
    axes are then equal, which tokens of texts and images hardly ever are.
    """
    stacks = (image.letters, text.letters) == ("NPD", "NTD")
    return stacks and image.origin == text.origin == "rank" and image.shape[1] == text.shape[1]


def is_usual_width(size: int, other_width: int = 0) -> bool:
    """Whether a size may be the width of features: a multiple of 8, or as wide as the others."""
    return size == other_width or (size >= _SMALLEST_WIDTH and size % 8 == 0)


def _map_names(image: Axes, other_width: int) -> list[str]:
    """The names under which a stack by rank may be one feature map: "DHW", "HWD", or none."""
    if image.letters != "NPD" or image.origin != "rank":
        return []
    first, second, third = image.shape
    names = []
    if is_usual_width(first, other_width) and first > max(second, third) and second == third:
        names.append("DHW")
    if is_usual_width(third, other_width) and third > first and first == second:
        names.append("HWD")
    return names


def mask_shapes(axes: Axes, N: int) -> list[tuple[int, ...]]:
    """The shapes in which a mask for this side may come, its own token axes last.

    Args:
        axes: the side's axes.
        N: samples of the job.
    """
    tokens = token_shapes(axes)
    shapes = [(N, *shape) for shape in tokens]
    # A mask without an axis for samples holds for every one of them.
    shapes += [shape for shape in tokens if shape]
    return list(dict.fromkeys(shapes))


def token_shapes(axes: Axes) -> list[tuple[int, ...]]:
    """The shapes in which a mask for one sample of this side may come."""
    shapes: list[tuple[int, ...]] = [(axes.tokens,)]
    if axes.token_letters == "HW":
        shapes.append((axes.size("H") or 0, axes.size("W") or 0))
    elif not axes.token_letters:
        shapes.append(())
    return shapes


def _named_axes(side: Side, shape: tuple[int, ...], named: str, where: str) -> Axes:
    option = f"--{side}-axes"
    letters = named.upper()
    token = _TOKEN_LETTER[side]
    allowed = "NTD" if side == "text" else "NPHWD"
    problem = None
    if unknown := [c for c in letters if c not in allowed]:
        problem = f"letter {unknown[0]!r} is not one of {', '.join(allowed)}"
    elif len(set(letters)) != len(letters):
        problem = "a letter stands twice"
    elif "D" not in letters:
        problem = "the feature axis D is missing"
    elif ("H" in letters) != ("W" in letters):
        problem = "H and W belong together"
    elif "H" in letters and token in letters:
        problem = "tokens are either P or H and W"
    if problem:
        raise UsageError(f"{option} {named}: {problem} (for example {_EXAMPLES[side]})")
    if len(letters) != len(shape):
        raise ShapeError(
            f"{where}: {option} {named} names {len(letters)} axes, the file has "
            f"{len(shape)}: {_shown(shape)}"
        )
    return Axes(side, letters, shape, option)


def _refuse_pixels(side: Side, shape: tuple[int, ...], where: str) -> None:
    """Raises:
    ShapeError: an image by rank has the shape of a picture, `[3, 224, 224]` or `[480, 640, 3]`, or
        of a stack of them.
    """
    if side != "image" or len(shape) not in (3, MAX_RANK):
        return
    first, second, third = shape[-3:]
    channels_first = first == 3 and second == third >= _SMALLEST_PICTURE
    channels_last = third in (1, 3) and min(first, second) >= _SMALLEST_PICTURE
    if channels_first or channels_last:
        named = "NPD" if len(shape) == 3 else "NDHW" if channels_first else "NHWD"
        raise ShapeError(
            f"{where}: {_shown(shape)} is the shape of the pixels of a picture: give what an "
            f"encoder makes of it, or say --image-axes {named} if these are features"
        )


def _refuse_impossible(axes: Axes, where: str) -> None:
    what = {"N": "no samples", "D": "features of width 0"}
    token = axes.token_letters
    if axes.origin == "rank" and axes.width == 1 and axes.tokens > 1 and len(token) == 1:
        swapped = axes.letters.replace(f"{token}D", f"D{token}")
        raise ShapeError(
            f"{where}: the {axes.side} {_shown(axes.shape)} is read as {axes.tokens} tokens of "
            f"width 1, which is no feature: say --{axes.side}-axes {swapped} if its axes are "
            f"swapped, or --{axes.side}-axes {axes.letters} if it is one"
        )
    for letter, size in zip(axes.letters, axes.shape, strict=True):
        if size == 0:
            raise ShapeError(
                f"{where}: the {axes.side} {_shown(axes.shape)} has "
                f"{what.get(letter, 'no tokens')}: there is nothing to fuse"
            )
    if axes.width > LARGEST_SIZE:
        raise ShapeError(
            f"{where}: the {axes.side} {_shown(axes.shape)} has features of width "
            f"{axes.width:,}, at most {LARGEST_SIZE:,} is possible"
        )


def _no_reading(side: Side, shape: tuple[int, ...], where: str) -> str:
    if not shape:
        return f"{where}: holds a single number, expected {side} features of rank 1 to 3"
    if side == "image" and len(shape) == MAX_RANK:
        return (
            f"{where}: a rank-4 image {_shown(shape)} can be read in two ways: "
            "say --image-axes NDHW or --image-axes NHWD"
        )
    return (
        f"{where}: rank {len(shape)} {_shown(shape)} is no {side} feature: "
        f"expected one of {_EXAMPLES[side]}"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return shortened(str(list(shape)))
