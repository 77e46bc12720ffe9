"""`fusecli bench`: this tool against the plain PyTorch module, on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer


def bench(
    image_tokens: Annotated[
        str, typer.Option("--P", help="Image tokens, separated by commas.")
    ] = "1,49,197,577",
    text_tokens: Annotated[
        str, typer.Option("--T", help="Text tokens, separated by commas.")
    ] = "8,16,32,77",
    pairs: Annotated[int, typer.Option("--pairs", "-n", help="Pairs in memory at once.")] = 64,
    dim: Annotated[int, typer.Option(help="Width of features and module.")] = 768,
    heads: Annotated[int, typer.Option(help="Attention heads H.")] = 8,
    turns: Annotated[int, typer.Option(help="How often each side runs.")] = 7,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Type fusecli computes in: float32, bfloat16, float16.")
    ] = "float32",
    plain_dtype: Annotated[
        str | None, typer.Option(help="Type of the plain module. Default: --dtype.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto (what fuse takes for a long job), numpy or torch.")
    ] = "auto",
    process: Annotated[
        bool,
        typer.Option("--process/--no-process", help="Also time whole processes on one pair."),
    ] = True,
    stack: Annotated[
        int,
        typer.Option(
            help="Only time one fuse of a stack of so many pairs [197, 768] with [16, 768], from "
            "file to file (0.65 MB a pair in the temporary folder)."
        ),
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(
            help="Only time fusecli batch on so many pairs [1, 768] with [8..32, 768] in .npy "
            "files, against a torch loop (0.13 MB a pair in the temporary folder, and results)."
        ),
    ] = 0,
    batch_memory: Annotated[
        int,
        typer.Option(help="Only run fusecli batch on 1,000 and on so many small pairs by id."),
    ] = 0,
    batch_ray: Annotated[
        int,
        typer.Option(help="Only time fusecli batch on so many pairs, plain and with --ray."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure fusecli against the plain PyTorch module, side by side, on this machine.

    Both run in turns on the same numbers; medians are compared. Run it on a quiet machine.
    """
    from fusecli.bench.in_memory import bench_process, bench_rows, bench_stack, measure_peak
    from fusecli.errors import UsageError
    from fusecli.fusion.backend.device import resolve_device
    from fusecli.fusion.config import FusionConfig
    from fusecli.fusion.options import DTYPES, ENGINES, check_choice

    check_choice("--dtype", dtype, DTYPES)
    check_choice("--plain-dtype", plain_dtype, DTYPES)
    check_choice("--engine", engine, ENGINES)
    if engine == "numpy" and (dtype != "float32" or device != "cpu"):
        raise UsageError("--engine numpy computes in float32 on the CPU only")
    if min(pairs, turns) < 1 or min(stack, batch, batch_memory, batch_ray) < 0:
        raise UsageError("--pairs, --turns, --stack, --batch, -memory and -ray must be positive")
    FusionConfig(dim, heads)
    shapes = _numbers("--P", image_tokens), _numbers("--T", text_tokens)
    if batch or batch_memory or batch_ray:
        _bench_batch(batch, batch_memory, batch_ray, as_json)
        return
    if stack:
        made = bench_stack(stack)
        if as_json:
            sys.stdout.write(json.dumps(asdict(made), indent=2) + "\n")
            return
        typer.echo(
            f"a stack of {stack:,} pairs, {made.file_gb:.1f} GB, from file to file: "
            f"{made.seconds:.1f} s, {made.rate:.0f} pairs/s, "
            f"{made.rate / made.memory_rate:.0%} of the rate from memory"
            + ("" if made.resident_mb is None else f", {made.resident_mb:.0f} MB resident")
        )
        return
    found = resolve_device(device)
    peak = measure_peak(found, dtype)
    plain = plain_dtype or dtype
    if not as_json:
        typer.echo(
            f"{found}, fusecli {dtype} against plain {plain}, D = {dim}, H = {heads}, "
            f"{pairs} pairs, {turns} turns; matrix-product peak {peak:.0f} GFLOP/s"
        )
        typer.echo(
            f"{'P':>5} {'T':>4} {'plain/s':>9} {'fusecli/s':>10} {'ratio':>6}  "
            f"{'engine':<6}  {'order (scores/values)':<22} {'fewer':>6} "
            f"{'GFLOP/s':>8} {'of peak':>8} {'prepare':>8} {'apart':>8}"
        )
    rows = []
    for row in bench_rows(found, dtype, engine, *shapes, dim, heads, pairs, turns, plain, peak):
        rows.append(row)
        if not as_json:
            order = f"{row.scores}/{row.values}" if row.scores != "none" else "one token"
            typer.echo(
                f"{row.P:>5} {row.T:>4} {row.plain_rate:>9.0f} {row.rate:>10.0f} "
                f"{row.ratio:>6.2f}  {row.engine:<6}  {order:<22} {row.fewer:>6.1f} "
                f"{row.gflops:>8.0f} {row.peak_share:>8.0%} "
                f"{row.prepare_s * 1e3:>6.0f}ms {row.deviation:>8.0e}"
            )
    whole = bench_process(turns) if process else None
    if as_json:
        data: dict[str, object] = {
            "device": found,
            "dtype": dtype,
            "plain_dtype": plain,
            "engine": engine,
        }
        data |= {"peak_gflops": peak, "rows": [asdict(row) for row in rows], "process": whole}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    elif whole is not None:
        typer.echo(
            f"one process, image [1, 768] and text [8, 768], from start to file: fusecli "
            f"{whole['fusecli_s']:.3f} s, plain script {whole['script_s']:.3f} s, "
            f"ratio {whole['ratio']:.1f}"
        )


def _bench_batch(pairs: int, memory: int, ray: int, as_json: bool) -> None:
    from fusecli.bench.batch import bench_batch, bench_memory, bench_ray

    made: list[dict[str, object]] = []
    if pairs:
        files = bench_batch(pairs)
        made.append(asdict(files))
        if not as_json:
            held = "" if files.resident_mb is None else f"; {files.resident_mb:.0f} MB resident"
            typer.echo(
                f"{pairs:,} pairs from files to files: torch loop {files.loop_rate:,.0f} pairs/s, "
                f"fusecli batch {files.rate:,.0f} ({files.ratio:.1f} times), with --pack "
                f"{files.packed_rate:,.0f} ({files.packed_ratio:.1f} times){held}"
            )
    for count in (1000, memory) if memory else ():
        keyed = bench_memory(count)
        made.append(asdict(keyed))
        if not as_json:
            held = "unknown" if keyed.resident_mb is None else f"{keyed.resident_mb:.0f} MB"
            typer.echo(
                f"{count:,} pairs by id, packed: {held} resident, {keyed.rate:,.0f} pairs/s, "
                f"of which listing them takes {keyed.listing_s:.1f} s"
            )
    if ray:
        on_ray = bench_ray(ray)
        made.append(asdict(on_ray))
        if not as_json:
            typer.echo(
                f"{ray:,} pairs from files to files: fusecli batch {on_ray.rate:,.0f} pairs/s, "
                f"with --ray {on_ray.ray_rate:,.0f}: {on_ray.start_s:.1f} s more to start, then "
                f"{on_ray.more:+.0%} a pair"
            )
    if as_json:
        sys.stdout.write(json.dumps(made, indent=2) + "\n")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from fusecli.errors import UsageError

    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text}: expected numbers separated by commas, such as 1,49")
    return tuple(int(part) for part in parts)
