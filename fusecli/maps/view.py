"""One pair's attention weights, prepared for a picture: its rows, its words and its scale.

A picture shows weights in multiples of the uniform weight: 1 is what every image token gets
where the text makes no difference. The scale starts at 0 and ends at four times the uniform
weight or above, so that nearly uniform attention looks uniform. A scale from the smallest to
the largest weight would turn noise into a pattern. Colours follow the square root of the
weight, as the Hellinger distance does: the other weights stay readable beside one that is
sixty times the uniform weight.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import counted, printable, shortened, shown_path
from fusecli.maps.boxes import Boxes
from fusecli.maps.selection import Drawing, Grid
from fusecli.report.parts import AttentionPart
from fusecli.report.result_diagnoses import UNIFORM, attention_statistics

LEAST_SPAN = 4.0  # the scale reaches at least so many times the uniform weight


@dataclass(frozen=True)
class AttentionView:
    """A pair's attention, ready to be drawn; padded text tokens are left out.

    Attributes:
        times: float64 `[t, P]`, the heads' mean in multiples of the uniform weight; NaN for
            padded image tokens.
        labels: t words.
        grid: None where image tokens lie in a row.
        photo: uint8 `[h, w, 3]` to be laid under the grid, or None.
        tokens: least and largest number of image tokens that a text token attends to, the null
            token among them; they differ where an attention mask says which.
        title: what is drawn.
        verdict: the most important fact about the map, in a sentence.
        caption: further sentences.
        places: sentences on where image tokens are in the picture.
        boxes: where image tokens are that are regions, or None.
        missing: what a weight that is NaN means, in words.
    """

    times: NDArray[np.float64]
    labels: list[str]
    grid: Grid | None
    photo: NDArray[np.uint8] | None
    tokens: tuple[int, int]
    title: str
    verdict: str
    caption: list[str]
    places: list[str]
    boxes: Boxes | None = None
    missing: str = "padding"

    @property
    def in_panels(self) -> bool:
        """Whether image tokens have places in a picture, of which each text token gets one."""
        return self.grid is not None or self.boxes is not None

    @property
    def placed(self) -> NDArray[np.float64]:
        """`times` of the image tokens that have a place in the picture."""
        return self.times[:, 0 if self.grid is None else self.grid.leading :]

    @property
    def unit(self) -> str:
        """The uniform weight in words."""
        least, most = self.tokens
        if least < most:
            return f"1/n, n the {least} to {most} image tokens that a text token may attend to"
        return f"1/{most} = {1 / most:.3g}"


@dataclass(frozen=True)
class Scale:
    """The colour scale, from 0 to `top` times the uniform weight.

    Attributes:
        least, largest: of what is drawn; 0 where nothing is.
    """

    least: float
    largest: float

    @classmethod
    def of(cls, times: NDArray[np.float64]) -> Scale:
        """For multiples of the uniform weight; NaN is left out."""
        known = times[np.isfinite(times)]
        return cls(float(known.min()), float(known.max())) if known.size else cls(0.0, 0.0)

    @property
    def top(self) -> float:
        """Where it ends."""
        return max(LEAST_SPAN, self.largest)

    def share(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where on it, from 0 to 1, multiples of the uniform weight lie."""
        return np.sqrt(times / self.top)


def view_of(
    weights: NDArray[np.float32],
    drawing: Drawing,
    names: tuple[str, str],
    N: int,
    null_token: bool,
    origin: str | None,
) -> AttentionView:
    """Make one pair's weights ready to be drawn.

    Args:
        weights: `[H, T, P]`, as `MapSink` keeps them.
        drawing: what was decided before.
        names: of the image and of the text.
        N: samples of the job.
        null_token: the weights leave a share to a null token.
        origin: where untrained weights came from, in words; None for others.
    """
    kept = weights[:, drawing.rows]  # [H, t, P]
    mean = kept.mean(axis=0, dtype=np.float64)
    allowed = np.broadcast_to(drawing.real, mean.shape)
    if drawing.allowed is not None:
        allowed = allowed & drawing.allowed[drawing.rows]
    tokens = allowed.sum(axis=1) + null_token  # [t]
    of_heads = attention_statistics(kept[None], None, None, null_token, allowed[None])
    of_mean = attention_statistics(mean[None, None], None, None, null_token, allowed[None])
    times = np.where(allowed, mean * tokens[:, None], np.nan)
    counts = _choices(tokens, null_token)
    image, text = (printable(shortened(os.path.basename(shown_path(name)), 40)) for name in names)
    which = f", sample {drawing.sample} of {N}" if N > 1 else ""
    return AttentionView(
        times,
        [printable(drawing.labels[row]) for row in drawing.rows],
        drawing.grid,
        drawing.photo,
        (int(counts.min()), int(counts.max())),
        f"Attention of {text} to {image}{which}",
        _verdict(of_heads, drawing, null_token, origin),
        _caption(weights, drawing, mean, tokens, null_token, of_mean),
        _places(times, drawing),
        drawing.boxes,
        "padding" if drawing.allowed is None else "padding, or not allowed by the attention mask",
    )


def _choices(tokens: NDArray[np.int64], null_token: bool) -> NDArray[np.int64]:
    """The counts in `tokens` of those that may attend to an image token; 1 where none may."""
    attends = tokens > null_token
    return tokens[attends] if attends.any() else np.ones(1, np.int64)


def _caption(
    weights: NDArray[np.float32],
    drawing: Drawing,
    mean: NDArray[np.float64],
    tokens: NDArray[np.int64],
    null_token: bool,
    statistics: AttentionPart | None,
) -> list[str]:
    """What the picture shows and what it leaves out, in sentences.

    Args:
        weights: `[H, T, P]`.
        drawing: what was decided before.
        mean: `[t, P]`, of the heads, for the text tokens that are drawn.
        tokens: `[t]`, how many tokens each may attend to, the null token included.
        null_token: the weights leave a share to a null token.
        statistics: of `mean`; None if no text token has a choice.
    """
    caption = []
    attends = tokens > null_token
    if attends.any():
        caption.append(f"Mean over {len(weights)} heads." if len(weights) > 1 else "One head.")
    if statistics is not None and len(weights) > 1:
        caption[0] = (
            f"Mean over {len(weights)} heads; the mean's own entropy is "
            f"{statistics.entropy_ratio:.4f} of its maximum."
        )
    if null_token and attends.any():
        rest, uniform = 1 - mean[attends].sum(axis=1), 1 / _choices(tokens, null_token)
        caption.append(
            f"The null token, which has no place here, takes {rest.mean():.3g} of a text token's "
            f"weight ({rest.min():.3g} to {rest.max():.3g}; uniform would be "
            f"{uniform.mean():.3g})."
        )
    if not np.isfinite(mean).all():
        caption.append("Weights that are not finite are left out.")
    padded = weights.shape[1] - len(drawing.rows)
    if padded:
        caption.append(f"{counted(padded, 'padded text token')} not drawn.")
    return caption


def binned(times: NDArray[np.float64], columns: int) -> NDArray[np.float64]:
    """Means of neighbouring image tokens, padding left out.

    Args:
        times: `[t, P]`, NaN for padding.
        columns: of the result, at most P.

    Returns:
        `[t, columns]`, NaN where there is only padding.
    """
    starts = np.arange(columns) * times.shape[1] // columns
    known = np.isfinite(times)
    count = np.add.reduceat(known, starts, axis=1, dtype=np.int64)
    total = np.add.reduceat(np.where(known, times, 0.0), starts, axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def loudest(view: AttentionView) -> list[tuple[float, int]]:
    """For each text token the largest weight and its image token; -1 where there is none."""
    known = np.where(np.isfinite(view.times), view.times, -1.0)
    at = known.argmax(axis=1)
    top = known.max(axis=1)
    return [(float(v), int(i) if v >= 0 else -1) for v, i in zip(top, at, strict=True)]


def in_words(times: float) -> str:
    """A multiple of the uniform weight, as people read it."""
    return f"{times:.2f}" if times < 10 else f"{times:,.0f}"


def _verdict(
    each: AttentionPart | None, drawing: Drawing, null_token: bool, origin: str | None
) -> str:
    real = drawing.real
    if not real.any():
        return "No real image token: there is nothing to attend to."
    if each is None and drawing.allowed is not None:
        return (
            "No text token may attend to more than one image token: each weight is 1, so this map "
            "shows the attention mask."
        )
    if each is None:
        which = "One image token" if real.all() else "One real image token"
        return f"{which}: its weight is 1 whatever the text, so this map means nothing."
    ratio = each.entropy_ratio
    weights = "" if origin is None else f" Weights: {origin}."
    which = "all image tokens" if drawing.allowed is None else "all that it may attend to"
    all_of_them = f"{which} and the null token" if null_token else which
    if not math.isfinite(ratio):
        return f"The weights are not finite.{weights}"
    if ratio > UNIFORM:
        return (
            f"Nearly uniform: every text token weighs {all_of_them} about alike (mean entropy "
            f"{ratio:.4f} of its maximum).{weights}"
        )
    return f"Mean entropy {ratio:.4f} of its maximum (1 is uniform).{weights}"


def _places(times: NDArray[np.float64], drawing: Drawing) -> list[str]:
    sentences, grid = [], drawing.grid
    if grid is not None:
        how = ", a guess from their number" if grid.guessed else ""
        sentences.append(f"Image tokens as {grid.rows}x{grid.columns}, row by row{how}.")
        before = times[:, : grid.leading]
        if grid.leading:
            what = "The class token (image token 0)"
            if grid.leading > 1:
                what = f"The first {grid.leading} image tokens"
            weight = ""
            if np.isfinite(before).any():
                weight = f"; mean weight {before[np.isfinite(before)].mean():.3g} times uniform"
            sentences.append(f"{what} not drawn{weight}.")
    padding = int((~drawing.real).sum())
    if drawing.boxes is not None:
        sentences.append(f"Regions: {drawing.boxes.how}.")
        sentences.append("Where regions overlap, the colour is that of the largest weight.")
    if padding:
        how = "hatched" if drawing.boxes is None else "not drawn"
        sentences.append(f"{counted(padding, 'padded image token')} {how}.")
    if drawing.allowed is not None:
        how = "hatched" if drawing.boxes is None else "not drawn"
        sentences.append(f"What the attention mask does not allow is {how}.")
    if drawing.photo is not None and grid is not None:
        h, w = drawing.photo.shape[:2]
        sentences.append("The photo is taken to be all that the encoder saw.")
        if abs(math.log(w * grid.rows / (h * grid.columns))) > math.log(1.1):
            sentences.append(
                "It is not of the grid's proportions: if the encoder cropped it, these places "
                "are wrong, and --image-file should be the crop."
            )
    return sentences
