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

from fusecli.errors import ShapeError, UsageError, shortened
from fusecli.features.literals import Side as Side
from fusecli.records import record

LARGEST_SIZE = 1 << 20  # wider than any encoder; keeps a hostile header from costing anything
MAX_RANK = 4
_SMALLEST_PICTURE = 112  # pixels a side
_SMALLEST_WIDTH = 16  # of features that are not as wide as those of the other side
TOKEN_LETTER: dict[Side, str] = {"image": "P", "text": "T"}
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


def is_usual_width(size: int, other_width: int = 0) -> bool:
    """Whether a size may be the width of features: a multiple of 8, or as wide as the others."""
    return size == other_width or (size >= _SMALLEST_WIDTH and size % 8 == 0)


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
    token = TOKEN_LETTER[side]
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
            f"{len(shape)}: {shown_shape(shape)}"
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
            f"{where}: {shown_shape(shape)} is the shape of the pixels of a picture: give what an "
            f"encoder makes of it, or say --image-axes {named} if these are features"
        )


def _refuse_impossible(axes: Axes, where: str) -> None:
    what = {"N": "no samples", "D": "features of width 0"}
    token = axes.token_letters
    if axes.origin == "rank" and axes.width == 1 and axes.tokens > 1 and len(token) == 1:
        swapped = axes.letters.replace(f"{token}D", f"D{token}")
        raise ShapeError(
            f"{where}: the {axes.side} {shown_shape(axes.shape)} is read as {axes.tokens} tokens "
            f"of width 1, which is no feature: say --{axes.side}-axes {swapped} if its axes are "
            f"swapped, or --{axes.side}-axes {axes.letters} if it is one"
        )
    for letter, size in zip(axes.letters, axes.shape, strict=True):
        if size == 0:
            raise ShapeError(
                f"{where}: the {axes.side} {shown_shape(axes.shape)} has "
                f"{what.get(letter, 'no tokens')}: there is nothing to fuse"
            )
    if axes.width > LARGEST_SIZE:
        raise ShapeError(
            f"{where}: the {axes.side} {shown_shape(axes.shape)} has features of width "
            f"{axes.width:,}, at most {LARGEST_SIZE:,} is possible"
        )


def _no_reading(side: Side, shape: tuple[int, ...], where: str) -> str:
    if not shape:
        return f"{where}: holds a single number, expected {side} features of rank 1 to 3"
    if side == "image" and len(shape) == MAX_RANK:
        return (
            f"{where}: a rank-4 image {shown_shape(shape)} can be read in two ways: "
            "say --image-axes NDHW or --image-axes NHWD"
        )
    several = ""
    if len(shape) == MAX_RANK:  # N images, with k captions each
        N, k, *rest = shape
        several = (
            f"; for {k} texts of each of {N} images give them as {shown_shape((N * k, *rest))} "
            f"(text.reshape) beside as many images (numpy.repeat(image, {k}, axis=0))"
        )
    return (
        f"{where}: rank {len(shape)} {shown_shape(shape)} is no {side} feature: "
        f"expected one of {_EXAMPLES[side]}{several}"
    )


def shown_shape(shape: tuple[int, ...]) -> str:
    """A shape as messages show it."""
    return shortened(str(list(shape)))
