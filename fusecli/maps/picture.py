"""A pair's attention as a picture: tokens down and image tokens across, or a small map a token.

Everything is placed in inches from measured text, so that nothing overlaps at any number of
tokens. Needs matplotlib (the extra `plot`); nothing of its global state is used or changed.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusecli.errors import MissingExtraError
from fusecli.maps.painter import Painter, pale, resized
from fusecli.maps.view import AttentionView, Scale, in_words

ENDINGS = (".png", ".svg", ".pdf")
_DPI = 150
_MARGIN, _GAP = 0.2, 0.1  # inches
_LEAST_WIDTH, _WIDEST_MATRIX = 5.6, 8.0


def require_matplotlib() -> None:
    """Raises:
    MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"--plot needs matplotlib ({error}): pip install '.[plot]' in a clone of fusecli"
        ) from None


def draw(view: AttentionView, ending: str) -> bytes:
    """Draw a view.

    Args:
        view: what is drawn.
        ending: one of `ENDINGS`.

    Returns:
        The file's bytes; the same view gives the same bytes.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the settings of a user's matplotlibrc
        matplotlib.rcParams["svg.hashsalt"] = "fusecli"
        figure = _Page(view).figure()
        sink = io.BytesIO()
        figure.savefig(sink, format=ending[1:], dpi=_DPI, metadata=_METADATA[ending])
    return sink.getvalue()


# Dates and versions are left out, so that the bytes stay the same.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class _Body:
    """Where the maps are, in inches from the upper left corner of the page.

    Attributes:
        width, height: of all of them.
        panels: left, top, width, height of each.
    """

    width: float
    height: float
    panels: list[tuple[float, float, float, float]]


class _Page:
    """One picture: title, verdict, maps, scale, caption from top to bottom."""

    def __init__(self, view: AttentionView) -> None:
        from matplotlib.figure import Figure

        from fusecli.maps.text_layout import Lettering

        self.view, self.scale = view, Scale.of(view.placed)
        self.blank = not np.isfinite(view.placed).any()  # a scale of no numbers would be empty
        self.painter = Painter(self.scale)
        self.title, self.strong = Lettering(11, bold=True), Lettering(9)
        self.label, self.small = Lettering(_label_size(view)), Lettering(8)
        grid = view.in_panels
        body = self._panels() if grid else self._rows()
        self.width = max(_LEAST_WIDTH, body.width + 2 * _MARGIN)
        room = self.width - 2 * _MARGIN
        title = self.title.wrapped(view.title, room)
        verdict = self.strong.wrapped(view.verdict, room)
        more = (
            []
            if grid or self._named == 1
            else [f"Of every {self._named} text tokens one is named."]
        )
        caption = self.small.wrapped(" ".join(view.caption + view.places + more), room)
        legend = [] if self.blank else self.small.wrapped(self._scale_says(), room)
        above = _MARGIN + len(title) * self.title.height + len(verdict) * self.strong.height + _GAP
        bar_top = above + body.height + 2.5 * _GAP
        below = bar_top + (0 if self.blank else 0.12 + 0.24)  # the bar, its numbers
        legend_height = len(legend) * self.small.height
        self.height = below + legend_height + len(caption) * self.small.height + _GAP + _MARGIN
        self._figure = Figure(figsize=(self.width, self.height), facecolor="white")
        y = self._say(title, self.title, _MARGIN)
        self._say(verdict, self.strong, y)
        self._left = (self.width - body.width) / 2
        if grid:
            self._draw_panels(body, above)
        else:
            self._draw_matrix(body, above)
        if not self.blank:
            self._draw_scale(bar_top)
        y = self._say(legend, self.small, below)
        self._say(caption, self.small, y + _GAP, colour="0.3")

    def figure(self) -> Any:
        """The finished figure."""
        return self._figure

    # --- placing ------------------------------------------------------------------------------

    def _panels(self) -> _Body:
        """One small map a token, in rows that fill a page of about 4 by 3."""
        view, grid = self.view, self.view.grid
        count = len(view.labels) + (view.photo is not None)
        shape = 1.0 if view.boxes is None else view.boxes.aspect
        if grid is not None:
            shape = grid.columns / grid.rows
        if view.photo is not None:
            shape = view.photo.shape[1] / view.photo.shape[0]
        side = (
            2.6
            if count <= 2
            else 1.8
            if count <= 6
            else 1.45
            if count <= 15
            else 1.15
            if count <= 45
            else 1.0
        )
        root = min(2.5, max(0.4, math.sqrt(shape)))  # a very flat grid is stretched
        w, h = side * root, side / root
        step_x, step_y = w + _GAP, h + self.label.height + _GAP

        def unfit(columns: int) -> float:
            rows = -(-count // columns)
            empty = rows * columns - count
            return abs(math.log(columns * step_x / (rows * step_y + 1.2) / 1.3)) + empty / count

        columns = min(range(1, count + 1), key=unfit)
        rows = -(-count // columns)
        places = [
            (i % columns * step_x, i // columns * step_y + self.label.height, w, h)
            for i in range(count)
        ]
        return _Body(columns * step_x - _GAP, rows * step_y - _GAP, places)

    def _rows(self) -> _Body:
        """Tokens down, image tokens across."""
        t, P = self.view.times.shape
        row = _row_height(t)
        labels = max(self.label.width(text) for text in self._labels(1.6))
        width = min(_WIDEST_MATRIX, max(0.5, _LEAST_WIDTH * 0.6 if P > 24 else 0.0, P * row))
        width = max(width, P / _DPI)  # every image token has its pixel
        left = labels + 0.08
        ticks = self.small.height * 2
        return _Body(left + width, t * row + ticks, [(left, 0.0, width, t * row)])

    @property
    def _named(self) -> int:
        """The step between labelled rows of the matrix: 1, or more where rows are too thin for all
        labels."""
        return math.ceil(self.label.height / _row_height(len(self.view.labels)))

    def _labels(self, room: float) -> list[str]:
        return [self.label.fitted(text, room) for text in self.view.labels]

    def _axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes placed in inches from the upper left corner."""
        W, H = self.width, self.height
        axes = self._figure.add_axes(
            (left / W, 1 - (top + height) / H, width / W, height / H), facecolor="none"
        )
        for spine in axes.spines.values():
            spine.set(linewidth=0.5, color="0.4")
        axes.set(xticks=[], yticks=[])
        return axes

    def _text(self, x: float, y: float, text: str, how: Any, **more: Any) -> None:
        """A line whose lower edge is y inches from the top."""
        self._figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontproperties=how.font,
            parse_math=False,  # a token may be a dollar sign
            **{"va": "baseline", **more},
        )

    def _say(self, lines: list[str], how: Any, top: float, colour: str = "black") -> float:
        """Lines of text from a height on; gives where they end."""
        for line in lines:
            top += how.height
            self._text(_MARGIN, top - 0.25 * how.height, line, how, color=colour)
        return top

    # --- drawing ------------------------------------------------------------------------------

    def _draw_panels(self, body: _Body, above: float) -> None:
        view, grid, boxes = self.view, self.view.grid, self.view.boxes
        names, panels = list(view.labels), [*view.placed]
        if grid is not None:
            panels = [*view.placed.reshape(-1, grid.rows, grid.columns)]
        under = None
        if view.photo is not None:
            _, _, w, h = body.panels[0]
            photo = resized(view.photo, round(w * _DPI), round(h * _DPI))
            under = pale(photo)
            names.insert(0, "the photo")
            panels.insert(0, photo)
        for name, panel, (left, top, w, h) in zip(names, panels, body.panels, strict=True):
            x, y = self._left + left, above + top
            shown = self.label.fitted(name, w - 0.4 * _GAP)  # apart from its neighbours
            self._text(x + w / 2, y - 0.04, shown, self.label, ha="center")
            axes = self._axes(x, y, w, h)
            if panel.ndim == 3:
                axes.imshow(panel, aspect="auto", interpolation="nearest")
            elif boxes is not None:
                self.painter.regions(axes, boxes, panel, under, (round(w * _DPI), round(h * _DPI)))
            else:
                self.painter.cells(axes, panel, under)

    def _draw_matrix(self, body: _Body, above: float) -> None:
        (left, top, w, h) = body.panels[0]
        t, P = self.view.times.shape
        x, y = self._left + left, above + top
        axes = self._axes(x, y, w, h)
        self.painter.cells(axes, self.view.times, None)
        for index, name in enumerate(self._labels(1.6)):
            if index % self._named == 0:
                middle = y + (index + 0.5) * h / t
                self._text(x - 0.06, middle, name, self.label, ha="right", va="center_baseline")
        for token in _round_steps(P - 1, max(1, int(w / 0.5))):
            at = x + (token + 0.5) * w / P
            self._text(at, y + h + self.small.height, str(token), self.small, ha="center")
        says = "image token"
        self._text(x + w / 2, y + h + 2 * self.small.height, says, self.small, ha="center")

    def _scale_says(self) -> str:
        least, largest = in_words(self.scale.least), in_words(self.scale.largest)
        return (
            f"Weight of an image token, in multiples of the uniform {self.view.unit} (line at 1×), "
            f"by its square root. The bracket is what occurs here: {least}× to {largest}×."
        )

    def _draw_scale(self, top: float) -> None:
        view, width = self.view, min(self.width - 2 * _MARGIN, 5.0)
        left, height = (self.width - width) / 2, 0.12
        axes = self._axes(left, top, width, height)
        colours = self.painter.bar(512, over_photo=view.photo is not None)
        axes.imshow(colours, aspect="auto", extent=(0, 1, 0, 1), interpolation="nearest")
        uniform = self._along(1.0)
        axes.axvline(uniform, color="white", linewidth=2.2)
        axes.axvline(uniform, color="black", linewidth=0.8)
        for value in self._ticks(0.5 / width):
            at = left + width * self._along(value)
            says = f"{value:g}" if value < self.scale.top else in_words(value).removesuffix(".00")
            self._text(at, top + height + 0.15, f"{says}×", self.small, ha="center")
        least, largest = self._along(self.scale.least), self._along(self.scale.largest)
        points = [(least, 1.25), (least, 1.6), (largest, 1.6), (largest, 1.25)]
        axes.plot(*zip(*points, strict=True), color="black", linewidth=0.8, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))

    def _along(self, times: float) -> float:
        """Where on the scale a multiple of the uniform weight lies."""
        return float(self.scale.share(np.array(times)))

    def _ticks(self, apart: float) -> list[float]:
        """The ends of the scale, 1, and round numbers between, so far apart that they fit."""
        top = self.scale.top
        powers = range(-1, math.ceil(math.log10(top)) + 1)
        round_ones = (float(f"{n}e{power}") for n in (1, 2, 5, 3, 4, 7) for power in powers)
        chosen: list[float] = []
        for value in (0.0, top, 1.0, *round_ones):
            near = (abs(self._along(value) - self._along(other)) < apart for other in chosen)
            if value <= top and not any(near):
                chosen.append(value)
        return chosen


def _label_size(view: AttentionView) -> float:
    return 8.0 if view.in_panels or len(view.labels) <= 40 else 7.0


def _row_height(t: int) -> float:
    """Inches a row of the matrix takes: as high as its label, thinner where there are many."""
    if t <= 40:
        return 0.18
    return 0.135 if t <= 100 else 13.5 / t


def _round_steps(end: int, most: int) -> range:
    """Numbers from 0 to an end in at most so many round steps."""
    steps = (f * 10**power for power in range(12) for f in (1, 2, 5))
    return range(0, end + 1, next(step for step in steps if step * most >= end))
