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
from dataclasses import dataclass, field
from typing import Literal

from fusecli.errors import ShapeError, UsageError, shortened

Side = Literal["image", "text"]

LARGEST_SIZE = 1 << 20  # wider than any encoder; keeps a hostile header from costing anything
MAX_RANK = 4
_TOKEN_LETTER: dict[Side, str] = {"image": "P", "text": "T"}
_BY_RANK: dict[Side, dict[int, str]] = {
    "image": {1: "D", 2: "PD", 3: "NPD"},
    "text": {1: "D", 2: "TD", 3: "NTD"},
}
_EXAMPLES: dict[Side, str] = {
    "image": "D, PD, ND, NPD, DHW, HWD, NDHW, NHWD",
    "text": "D, TD, ND, NTD",
}


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class PairShapes:
    """How an image file and a text file belong together.

    Attributes:
        image, text: the axes of both files.
        N: samples; 1 where neither file has an axis for them.
        image_shared: one image serves all N text samples.
        notes: what was taken to be the case, in words, where another reading was possible.
    """

    image: Axes
    text: Axes
    N: int
    image_shared: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def T(self) -> int:  # noqa: N802
        return self.text.tokens

    @property
    def P(self) -> int:  # noqa: N802
        return self.image.tokens

    def output_shape(self, width: int, side: str = "text") -> tuple[int, ...]:
        """Shape of a fused vector per token of one side, in the order N, tokens, D."""
        sizes = {"N": self.N, "T": self.T, "P": self.P, "D": width}
        return tuple(sizes[letter] for letter in self.output_letters_of(side))

    def map_shape(self, heads: int | None) -> tuple[int, ...]:
        """Shape of the attention maps: `[N, H, T, P]`, N where the text has it, H where asked for.

        Args:
            heads: H, or None for the mean over heads.
        """
        stacked = (self.N,) if self.text.samples is not None else ()
        return (*stacked, *(() if heads is None else (heads,)), self.T, self.P)

    @property
    def output_letters(self) -> str:
        """The letters of `output_shape`."""
        return self.output_letters_of("text")

    def output_letters_of(self, side: str) -> str:
        """The letters of one side's result; cells of a feature map are tokens there."""
        own = self.text if side == "text" else self.image
        samples = "N" if "N" in self.text.letters or "N" in own.letters else ""
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
    N = text.samples
    if N is not None and N > 1 and image.letters == "PD" and image.origin == "rank":
        rows = image.shape[0]
        if rows == N:
            image = Axes("image", "ND", image.shape, f"as many rows as text samples ({N})")
        elif rows != 1:
            raise ShapeError(
                f"{both}: the text has {N} samples, the image {rows} rows: say --image-axes PD "
                f"if they are the tokens of one image for all samples, or give {N} rows"
            )
    images = image.samples
    if N is None and images is not None and images > 1:
        maps = ", or --image-axes DHW (HWD) for one feature map" if len(image.shape) == 3 else ""
        raise ShapeError(
            f"{both}: the image has {images} samples, the text one: "
            f"say --text-axes ND if each text row is a sample{maps}"
        )
    if N is not None and images is not None and images not in (1, N):
        maps = (
            "; for one feature map for all samples say --image-axes DHW or HWD"
            if image.letters == "NPD" and image.origin == "rank"
            else ""
        )
        raise ShapeError(f"{both}: the image has {images} samples, the text {N}{maps}")
    shared = N is not None and N > 1 and (images is None or images == 1)
    if shared:
        notes.append(f"one image is shared by all {N} text samples")
    return PairShapes(image, text, N or 1, shared, tuple(notes))


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


def _refuse_impossible(axes: Axes, where: str) -> None:
    what = {"N": "no samples", "D": "features of width 0"}
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
