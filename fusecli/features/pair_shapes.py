"""How the shapes of an image file and a text file belong together. Letters as in `axes.py`."""

from __future__ import annotations

from dataclasses import field

from fusecli.errors import ShapeError
from fusecli.features.axes import TOKEN_LETTER, Axes, is_usual_width, shown_shape
from fusecli.features.literals import Side
from fusecli.records import record


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
        tokens = TOKEN_LETTER[own.side] if own.token_letters else ""
        return f"{samples}{tokens}D"


def match_pair(image: Axes, text: Axes, image_where: str, text_where: str) -> PairShapes:
    """Decide which image belongs to which text sample.

    Args:
        image, text: the axes as `read_axes` found them.
        image_where, text_where: file and key of each, for errors.

    Raises:
        ShapeError: the numbers of samples do not belong together.
    """
    notes: list[str] = []
    both = f"{image_where} {shown_shape(image.shape)} and {text_where} {shown_shape(text.shape)}"
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
