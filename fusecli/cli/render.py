"""Data to tables and bars for people. The only module that imports rich."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from fusecli.errors import counted, printable, shortened
from fusecli.fusion.compare import MethodRow, Shapes
from fusecli.maps.view import AttentionView, Scale, binned, in_words, loudest
from fusecli.report.report import Report

_PLAIN_WIDTH = 120  # where the output is no terminal: wide enough to keep rows on one line
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


def print_report(report: Report) -> None:
    """The shape report as tables, on stderr."""
    console = _console(sys.stderr)
    console.print(_inputs(report))
    module, weights = report.module, report.module["weights"]
    words = [module["method"], *_sizes(module), f"{module['parameters']:,} parameters"]
    _line(console, "module", ", ".join([*words, *_switches(module)]))
    sha = f", sha256 {weights['sha256'][:16]}…" if weights["sha256"] else ""
    origin = weights["origin"]
    if weights["file"] is not None and weights["trained"] is False:
        origin = f"{weights['file']} ({origin})"
    _line(console, "weights", f"{origin}{sha}")
    console.print(_stages(report))
    if report.plan is not None:
        _line(console, "order", report.plan["why"])
        if report.plan["image_asks"] is not None:
            _line(console, "order, image asks", report.plan["image_asks"]["why"])
    if report.attention is not None:
        ratio = report.attention["entropy_ratio"]
        both = report.output["direction"] == "both"
        label = "attention, text asks" if both else "attention"
        _line(console, label, f"mean entropy {ratio:.4f} of its maximum (1 is uniform)")
    out, made = report.output, report.provenance
    tensors = [
        f"{tensor['shape']}" if tensor["key"] is None else f"{tensor['key']} {tensor['shape']}"
        for tensor in out["tensors"]
    ]
    shown = ", ".join(tensors) if len(tensors) > 1 else str(out["shape"])
    _line(console, "output", f"{out['file']}  {shown} {out['dtype']}, {out['bytes']:,} bytes")
    if report.maps is not None:
        maps = report.maps
        heads = "of each head" if "H" in maps["axes"] else "mean over heads"
        _line(
            console,
            "attention weights",
            f"{maps['file']}  {maps['shape']} {maps['dtype']}, {heads}, {maps['bytes']:,} bytes",
        )
    versions = ", ".join(f"{name} {number}" for name, number in made["libraries"].items())
    _line(
        console,
        "made by",
        f"fusecli {made['fusecli']}, engine {made['engine']}, {made['dtype']} on "
        f"{made['device']}, {counted(made['threads'], 'thread')}; {versions}",
    )
    for diagnosis in report.diagnoses:
        _line(console, "diagnosis", f"{diagnosis.message}; {diagnosis.remedy}")
    if not report.diagnoses:
        _line(console, "diagnosis", "nothing speaks against this result")


def print_inspection(files: list[dict[str, Any]]) -> None:
    """What `inspect` found, on stdout."""
    console = _console(sys.stdout)
    for found in files:
        _line(console, found["file"], f"{found['bytes']:,} bytes")
        weights = found["weights"]
        if weights is not None:
            _line(console, "weights of a fusion", _described(weights))
        table = _table("key", "shape", "type", "bytes", "as image", "as text")
        for tensor in found["tensors"]:
            table.add_row(
                escape(tensor["key"] or "-"),
                escape(str(tensor["shape"])),
                tensor["dtype"],
                f"{tensor['bytes']:,}",
                tensor["as_image"] or "-",
                tensor["as_text"] or "-",
            )
        console.print(table)
        for tensor in found["tensors"]:
            label = tensor["key"] or "numbers"
            if tensor["problem"]:
                _line(console, label, tensor["problem"])
            if "stats" in tensor:
                _line(console, label, _stats(tensor["stats"]))


def print_methods(shapes: Shapes, rows: list[MethodRow]) -> None:
    """The ways to fuse as a table, on stdout."""
    console = _console(sys.stdout)
    sizes = f"T {shapes.T}, Dt {shapes.text_dim}, P {shapes.P}, Di {shapes.image_dim}"
    _line(console, "a pair", sizes)
    table = _table("method", "width", "weights", "patches", "the text", "multiply-adds")
    for index in (1, 2, 5):
        table.columns[index].justify = "right"
    for row in rows:
        if row.problem is None:
            numbers = [str(row.width), f"{row.parameters:,}" if row.parameters else "none"]
            name = row.options.removeprefix("--method ")
            table.add_row(name, *numbers, row.patches, row.text, f"{row.multiply_adds:,}")
    console.print(table)
    for row in rows:
        if row.problem is not None:
            _line(console, row.options, row.problem)


def print_map(view: AttentionView) -> None:
    """A pair's attention as a heat map, tokens down and image tokens across, on stderr."""
    console = _console(sys.stderr)
    # Sixteen colours are too few for a scale that is even.
    colour = not console.no_color and console.color_system in ("256", "truecolor")
    _line(console, "attention", view.title.removeprefix("Attention of "))
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
        caption.append("/ is padding.")
    console.print(Text(" ".join(caption), style="dim"))


class ProgressBar:
    """A bar with count, rate and time left, on stderr."""

    def __init__(self, verb: str, total: int) -> None:
        self._progress = RichProgress(
            TextColumn(verb),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            console=_console(sys.stderr),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(verb, total=total)

    def update(self, done: int) -> None:
        """So many are done."""
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


def escape(text: str) -> str:
    """Names from files, harmless to rich and to the terminal."""
    return escape_markup(printable(shortened(text, 200)))


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def _line(console: Console, label: str, text: str) -> None:
    line = Text.assemble((f"{printable(shortened(label, 200))}: ", "bold"), printable(text))
    console.print(line, soft_wrap=True)


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


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _inputs(report: Report) -> Table:
    table = _table("input", "file", "shape", "type", "read as", "mask")
    for side, entry in report.inputs.items():
        name = entry["file"] if entry["key"] is None else f"{entry['file']}[{entry['key']}]"
        sizes = ", ".join(f"{letter} {size}" for letter, size in entry["sizes"].items())
        mask = entry["mask"]
        masked = (
            "none"
            if mask is None
            else f"{mask['padding']} of {mask['real'] + mask['padding']} padded"
        )
        table.add_row(
            side, escape(name), escape(str(entry["shape"])), entry["dtype"], sizes, masked
        )
    return table


def _stages(report: Report) -> Table:
    table = _table("stage", "axes", "shape", "")
    for stage in report.stages:
        table.add_row(
            stage.name,
            escape(f"[{stage.letters}]"),
            escape(str(list(stage.shape))),
            "" if stage.formed else "never formed",
        )
    return table


def _described(weights: dict[str, Any]) -> str:
    state = []
    if weights["trained"] is False:
        state.append(f"untrained, seed {weights['initial_seed']}")
    words = [
        *_sizes(weights),
        f"Di = {weights['image_dim']}",
        f"Dt = {weights['text_dim']}",
        *_switches(weights),
        f"{weights['parameters']:,} parameters",
        *state,
    ]
    return ", ".join(words if weights["method"] == "attention" else [weights["method"], *words])


def _sizes(module: dict[str, Any]) -> list[str]:
    words = [f"D = {module['embed_dim']}"]
    if module["method"] in ("attention", "transformer"):
        heads = module["num_heads"]
        words.append(f"H = {'unknown' if heads is None else heads}")
    if module.get("head_dim") is not None:
        words.append(f"d = {module['head_dim']}")
    if module.get("layers") is not None:
        words.append(f"{counted(module['layers'], 'layer')}, F = {module['ffn_dim']}")
    return words


def _switches(module: dict[str, Any]) -> list[str]:
    """What is said of a module; a method without such a switch has no entry, or None."""
    words = [name for name in ("residual", "norm", "null_token", "gate") if module.get(name)]
    if module.get("projected") is not None:
        words.append("projected" if module["projected"] else "not projected")
    if module.get("alpha") is not None:
        words.append(f"alpha {module['alpha']:g}")
    return words


def _stats(stats: dict[str, Any]) -> str:
    norm = stats["mean_norm"]
    norms = "no finite rows"
    if norm is not None:
        norms = f"mean norm {norm:.4g}, largest {stats['largest_norm']:.4g}"
    return (
        f"{counted(stats['rows'], 'row')}, {stats['nan']:,} NaN, {stats['infinite']:,} infinite, "
        f"{counted(stats['zero_rows'], 'zero row')}, {norms}"
    )
