"""The heat map of a pair's attention in the terminal. Imports rich."""

from __future__ import annotations

import math
import sys

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from fusecli.cli.console import console_on, print_line
from fusecli.maps.view import AttentionView, Scale, binned, in_words, loudest

_LONGEST_LABEL = 16
_SCALE_CELLS = 21
# More ink is more weight. Of an odd number, so that weights near the uniform one, in the middle
# of the smallest scale, do not fall on either side of a step.
_RAMP = " .:-=+*#@"
# Steps of matplotlib's cividis, which reads the same without red or green.
_COLOURS = (
    "#00224e", "#002e6a", "#1a386f", "#32436d", "#434e6c", "#535a6d", "#616570", "#6f7073",
    "#7d7c78", "#8c8878", "#9b9476", "#aba072", "#bcae6c", "#cdbb63", "#dec958", "#f0d846",
    "#fee838",
)  # fmt: skip


def print_map(view: AttentionView) -> None:
    """A pair's attention as a heat map, tokens down and image tokens across, on stderr."""
    console = console_on(sys.stderr)
    # Sixteen colours are too few for a scale that is even.
    colour = not console.no_color and console.color_system in ("256", "truecolor")
    print_line(console, "attention", view.title.removeprefix("Attention of "))
    console.print(Text(view.verdict))
    labels = min(_LONGEST_LABEL, max(map(cell_len, view.labels)))
    loud = [
        f"{in_words(times)}x at {token}" if token >= 0 else "" for times, token in loudest(view)
    ]
    peaks = max(map(len, loud))
    room = max(8, console.width - labels - peaks - 2)
    P = view.times.shape[1]
    rows = binned(view.times, min(P, room))
    scale, wide = Scale.of(rows), max(1, min(3, room // P))  # characters an image token
    for label, row, peak in zip(view.labels, rows, loud, strict=True):
        line = Text(set_cell_size(label, labels) if cell_len(label) <= labels else _cut(label))
        line.append(" ")
        for share in scale.share(row):
            _cell(line, share, wide, colour)
        console.print(line.append(f" {peak}"), no_wrap=True, overflow="crop")
    ruler = "0" if P == 1 else "0" + str(P - 1).rjust(rows.shape[1] * wide - 1)
    ruler = f"{'':{labels}} {ruler:{rows.shape[1] * wide}} largest"
    console.print(Text(ruler), no_wrap=True, overflow="crop")
    caption, known = list(view.caption), np.isfinite(view.times).any()
    if known:
        console.print(_scale_bar(view, scale, colour))
    if rows.shape[1] < P:
        most = math.ceil(P / rows.shape[1])
        columns = f"; columns are {_range(scale)}" if known else ""
        caption.append(f"Each column is the mean of up to {most} image tokens{columns}.")
    if not np.isfinite(view.times).all():
        caption.append(f"/ is {view.missing}.")
    console.print(Text(" ".join(caption), style="dim"))


def _scale_bar(view: AttentionView, scale: Scale, colour: bool) -> Text:
    """The scale of the columns, and what image tokens have."""
    bar = Text("scale: 0 ")
    for step in range(_SCALE_CELLS):
        _cell(bar, step / (_SCALE_CELLS - 1), 1, colour)
    return bar.append(
        f" {in_words(scale.top)}x uniform, by its square root; uniform is {view.unit}; "
        f"here {_range(Scale.of(view.times))}"
    )


def _range(scale: Scale) -> str:
    return f"{in_words(scale.least)}x to {in_words(scale.largest)}x"


def _cut(label: str) -> str:
    return set_cell_size(label, _LONGEST_LABEL - 1) + "…"


def _cell(line: Text, share: float, wide: int, colour: bool) -> None:
    """One column of a heat map; a share that is no number is padding or worse."""
    if not math.isfinite(share):
        line.append("/" * wide, style="dim" if colour else "")
    elif colour:
        line.append(" " * wide, style=f"on {_COLOURS[round(share * (len(_COLOURS) - 1))]}")
    else:
        line.append(_RAMP[round(share * (len(_RAMP) - 1))] * wide)
