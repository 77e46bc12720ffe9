"""Tables for people: the report, what inspect found, the methods side by side. Imports rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table

from fusecli.cli.console import console_on, escape, print_line
from fusecli.errors import counted
from fusecli.fusion.compare import MethodRow, Shapes
from fusecli.report.inspect_parts import (
    InspectedFile,
    InspectedFolder,
    InspectedWeights,
    TensorStats,
)
from fusecli.report.parts import Part
from fusecli.report.report import Report

_UNBOUND = 10_000  # columns, more than any terminal has
_MOST_ROWS = 20  # of a file whose tensors are many of one kind


def print_report(report: Report) -> None:
    """The shape report as tables, on stderr."""
    console = console_on(sys.stderr)
    print_table(console, _inputs(report))
    module, weights = report.module, report.module.weights
    words = [module.method, *_sizes(module), f"{module.parameters:,} parameters"]
    print_line(console, "module", ", ".join([*words, *_switches(module)]))
    sha = f", sha256 {weights.sha256[:16]}…" if weights.sha256 else ""
    origin = weights.origin
    if weights.file is not None and weights.trained is False:
        origin = f"{weights.file} ({origin})"
    print_line(console, "weights", f"{origin}{sha}")
    print_table(console, _stages(report))
    if report.plan is not None:
        print_line(console, "order", report.plan.why)
        if report.plan.image_asks is not None:
            print_line(console, "order, image asks", report.plan.image_asks.why)
    if report.attention is not None:
        ratio = report.attention.entropy_ratio
        both = report.output.direction == "both"
        label = "attention, text asks" if both else "attention"
        print_line(console, label, f"mean entropy {ratio:.4f} of its maximum (1 is uniform)")
    out, made = report.output, report.provenance
    tensors = [
        f"{tensor.shape}" if tensor.key is None else f"{tensor.key} {tensor.shape}"
        for tensor in out.tensors
    ]
    shown = ", ".join(tensors) if len(tensors) > 1 else str(out.shape)
    print_line(console, "output", f"{out.file}  {shown} {out.dtype}, {out.bytes:,} bytes")
    if report.maps is not None:
        maps = report.maps
        heads = "of each head" if "H" in maps.axes else "mean over heads"
        print_line(
            console,
            "attention weights",
            f"{maps.file}  {maps.shape} {maps.dtype}, {heads}, {maps.bytes:,} bytes",
        )
    versions = ", ".join(f"{name} {number}" for name, number in made.libraries.items())
    print_line(
        console,
        "made by",
        f"fusecli {made.fusecli}, engine {made.engine}, {made.dtype} on "
        f"{made.device}, {counted(made.threads, 'thread')}; {versions}",
    )
    for diagnosis in report.diagnoses:
        print_line(console, "diagnosis", f"{diagnosis.message}; {diagnosis.remedy}")
    if not report.diagnoses:
        print_line(console, "diagnosis", "none: no sign that something is wrong")


def print_inspection(found: Sequence[InspectedFile | InspectedFolder]) -> None:
    """What `inspect` found, on stdout."""
    console = console_on(sys.stdout)
    for each in found:
        if isinstance(each, InspectedFile):
            _print_file(console, each)
            continue
        files = ", ".join(f"{count:,} {ending}" for ending, count in each.files.items())
        total = sum(each.files.values())
        words = [counted(total, "feature file") + (f" ({files})" if total else "")]
        words += [f"{each.bytes:,} bytes"] if total else []
        words += [counted(each.other_files, "other file")] if each.other_files else []
        words += [f"in {counted(each.folders, 'folder')}"] if each.folders > 1 else []
        print_line(console, each.folder, ", ".join(words))
        for file in each.first:
            _print_file(console, file)
        for problem in each.problems:
            print_line(console, "problem", problem)
        more = total - len(each.first) - len(each.problems)
        if more:
            print_line(console, "not shown", counted(more, "more file"))


def _print_file(console: Console, found: InspectedFile) -> None:
    print_line(console, found.file, f"{found.bytes:,} bytes")
    weights, by_id = found.weights, found.by_id
    if weights is not None:
        print_line(console, "weights of a fusion", _described(weights))
        if weights.unused:
            from fusecli.fusion.stored_module import unused_note

            print_line(console, "note", unused_note(found.file, tuple(weights.unused)))
    if by_id is not None:
        of_one_side = f"features of {counted(by_id.ids, 'pair')} by id, one side of them"
        both = f"{counted(by_id.pairs or 0, 'pair')} by id, of {counted(by_id.ids, 'id')}"
        print_line(console, "for fusecli batch", of_one_side if by_id.pairs is None else both)
    names = ["key", "shape", "type", "bytes", "as image", "as text"]
    table = _table(*(names[:4] if weights is not None else names))
    shown = found.tensors[: _MOST_ROWS if by_id is not None else None]
    for tensor in shown:
        cells = [
            escape(tensor.key or "-"),
            escape(str(tensor.shape)),
            tensor.dtype,
            f"{tensor.bytes:,}",
        ]
        axes = [tensor.as_image or "-", tensor.as_text or "-"]
        table.add_row(*cells, *(axes if weights is None else ()))
    print_table(console, table)
    if left := len(found.tensors) + found.left_out - len(shown):
        print_line(console, "not shown", counted(left, "more tensor") + ", which --json gives")
    for tensor in shown:
        label = tensor.key or "numbers"
        if tensor.problem:
            print_line(console, label, tensor.problem)
        if tensor.stats is not None:
            print_line(console, label, _stats(tensor.stats))


def print_methods(shapes: Shapes, rows: list[MethodRow]) -> None:
    """The ways to fuse as a table, on stdout."""
    console = console_on(sys.stdout)
    sizes = f"T {shapes.T}, Dt {shapes.text_dim}, P {shapes.P}, Di {shapes.image_dim}"
    print_line(console, "a pair", sizes)
    table = _table("method", "width", "weights", "patches", "the text", "multiply-adds")
    for index in (1, 2, 5):
        table.columns[index].justify = "right"
    for row in rows:
        if row.problem is None:
            numbers = [str(row.width), f"{row.parameters:,}" if row.parameters else "none"]
            name = row.options.removeprefix("--method ")
            table.add_row(name, *numbers, row.patches, row.text, f"{row.multiply_adds:,}")
    print_table(console, table)
    for row in rows:
        if row.problem is not None:
            print_line(console, row.options, row.problem)


def print_table(console: Console, table: Table) -> None:
    """A table; row by row, one value a line, where it is wider than the terminal.

    Columns that do not fit would be broken inside words.
    """
    unbound = console.options.update(max_width=_UNBOUND)
    if not console.is_terminal or Measurement.get(console, unbound, table).maximum <= console.width:
        console.print(table)
        return
    first, *others = table.columns
    values = [list(column.cells) for column in others]
    for row, name in enumerate(first.cells):
        console.print(name, style="bold")
        for column, cells in zip(others, values, strict=True):
            if cells[row]:
                label = f"{column.header}: " if column.header else ""
                console.print(Padding(f"{label}{cells[row]}", (0, 0, 0, 2)))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _inputs(report: Report) -> Table:
    table = _table("input", "file", "shape", "type", "read as", "mask")
    for side, entry in report.inputs.items():
        name = entry.file if entry.key is None else f"{entry.file}[{entry.key}]"
        sizes = ", ".join(f"{letter} {size}" for letter, size in entry.sizes.items())
        mask = entry.mask
        masked = "none" if mask is None else f"{mask.padding} of {mask.real + mask.padding} padded"
        table.add_row(side, escape(name), escape(str(entry.shape)), entry.dtype, sizes, masked)
    allowed = report.attention_mask
    if allowed is not None:
        name = allowed.file if allowed.key is None else f"{allowed.file}[{allowed.key}]"
        total = allowed.allowed + allowed.not_allowed
        table.add_row(
            "attention mask",
            escape(name),
            escape(str(allowed.shape)),
            allowed.dtype,
            allowed.style,
            f"{allowed.allowed:,} of {total:,} allowed",
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


def _described(weights: InspectedWeights) -> str:
    state = []
    if weights.trained is False:
        state.append(f"untrained, seed {weights.initial_seed}")
    words = [
        *_sizes(weights),
        f"Di = {weights.config.image_dim}",
        f"Dt = {weights.config.text_dim}",
        *_switches(weights),
        f"{weights.config.parameter_count():,} parameters",
        *state,
    ]
    return ", ".join(
        words if weights.config.method == "attention" else [weights.config.method, *words]
    )


def _sizes(module: Part) -> list[str]:
    words = [f"D = {module['embed_dim']}"]
    if module["method"] in ("attention", "transformer"):
        heads = module["num_heads"]
        words.append(f"H = {'unknown' if heads is None else heads}")
    if module.get("head_dim") is not None:
        words.append(f"d = {module['head_dim']}")
    if module.get("layers") is not None:
        words.append(f"{counted(module['layers'], 'layer')}, F = {module['ffn_dim']}")
    return words


def _switches(module: Part) -> list[str]:
    """What is said of a module; a method without such a switch has no entry, or None."""
    words = [name for name in ("residual", "norm", "null_token", "gate") if module.get(name)]
    if module.get("projected") is not None:
        words.append("projected" if module["projected"] else "not projected")
    if module.get("alpha") is not None:
        words.append(f"alpha {module['alpha']:g}")
    return words


def _stats(stats: TensorStats) -> str:
    norm = stats.mean_norm
    norms = "no finite rows"
    if norm is not None:
        norms = f"mean norm {norm:.4g}, largest {stats.largest_norm:.4g}"
    return (
        f"{counted(stats.rows, 'row')}, {stats.nan:,} NaN, {stats.infinite:,} infinite, "
        f"{counted(stats.zero_rows, 'zero row')}, {norms}"
    )
