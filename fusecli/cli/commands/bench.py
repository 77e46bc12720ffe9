"""`fusecli bench`: this tool against the plain PyTorch module, on this machine."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.cli.option_groups import Computing, JsonProgram
from fusecli.cli.options import OptionGroup, option_group
from fusecli.fusion.literals import Dtype

if TYPE_CHECKING:
    from fusecli.bench.in_memory import Row
    from fusecli.bench.processes import ProcessResult


@option_group
class BenchShapes(OptionGroup):
    """The pairs in memory."""

    heading: ClassVar[str] = "Shapes"
    image_tokens: Annotated[
        str,
        typer.Option("--P", metavar="N,N,...", help="Numbers of image tokens, with commas."),
    ] = "1,49,197,577"
    text_tokens: Annotated[
        str, typer.Option("--T", metavar="N,N,...", help="Numbers of text tokens, with commas.")
    ] = "8,16,32,77"
    pairs: Annotated[
        int, typer.Option("--pairs", "-n", metavar="N", help="Pairs in memory at once.")
    ] = 64
    dim: Annotated[
        int, typer.Option(metavar="D", help="Width of the features and of the module.")
    ] = 768
    heads: Annotated[int, typer.Option(metavar="H", help="Number of attention heads.")] = 8


@option_group
class Measurements(OptionGroup):
    """What is measured."""

    heading: ClassVar[str] = "Measurements"
    turns: Annotated[int, typer.Option(metavar="N", help="How often each side runs.")] = 7
    process: Annotated[
        bool,
        typer.Option("--process/--no-process", help="Also time whole processes on one pair."),
    ] = True
    stack: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Only time one 'fusecli fuse' of a stack of N pairs [197, 768] with [16, 768], "
            "from file to file (0.65 MB a pair in the temporary folder).",
        ),
    ] = 0
    batch: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Only time 'fusecli batch' on N pairs [1, 768] with [8..32, 768] in .npy files, "
            "against a torch loop (0.13 MB a pair in the temporary folder, and results).",
        ),
    ] = 0
    batch_memory: Annotated[
        int,
        typer.Option(
            metavar="N", help="Only run 'fusecli batch' on 1,000 and on N small pairs keyed by id."
        ),
    ] = 0
    batch_ray: Annotated[
        int,
        typer.Option(
            metavar="N", help="Only time 'fusecli batch' on N pairs, without and with --ray."
        ),
    ] = 0
    train: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Only time training on N pairs [49, 384] with [4..16, 384] in .npy files, against "
            "a PyTorch loop (0.09 MB a pair in the temporary folder).",
        ),
    ] = 0
    train_table: Annotated[
        bool,
        typer.Option(
            "--train-table/--no-train-table",
            help="With --train, also train everything that 'fusecli train' trains.",
        ),
    ] = False


@option_group
class BenchComputing(Computing):
    """What computes."""

    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = "cpu"
    plain_dtype: Annotated[
        Dtype | None,
        typer.Option(help="Type that the plain module computes in.", show_default="--dtype"),
    ] = None


def bench(
    shapes: BenchShapes,
    measurements: Measurements,
    computing: BenchComputing,
    program: JsonProgram,
) -> None:
    """Measure fusecli against the plain PyTorch module, side by side, on this machine.

    Both run in turns on the same numbers; medians are compared. Run it on a quiet machine.
    """
    from fusecli.errors import UsageError
    from fusecli.fusion.config import FusionConfig

    device, dtype, engine = computing.device, computing.dtype, computing.engine
    if engine == "numpy" and (dtype != "float32" or device != "cpu"):
        raise UsageError("--engine numpy computes in float32 on the CPU only")
    other = (
        measurements.stack,
        measurements.batch,
        measurements.batch_memory,
        measurements.batch_ray,
        measurements.train,
    )
    if min(shapes.pairs, measurements.turns) < 1 or min(other) < 0:
        raise UsageError(
            "--pairs, --turns, --stack, --batch, -memory, -ray and --train must be positive"
        )
    FusionConfig(shapes.dim, shapes.heads)
    image_tokens = _numbers("--P", shapes.image_tokens)
    text_tokens = _numbers("--T", shapes.text_tokens)
    if measurements.train:
        _bench_train(measurements.train, measurements.train_table, program.as_json)
    elif any(other[1:]):
        _bench_batch(*other[1:4], program.as_json)
    elif measurements.stack:
        _bench_stack(measurements.stack, program.as_json)
    else:
        _bench_in_memory(
            (image_tokens, text_tokens), shapes, measurements, computing, program.as_json
        )


def _bench_train(pairs: int, table: bool, as_json: bool) -> None:
    from fusecli.bench.train import bench_train

    result = bench_train(pairs, table, 4 << 30, lambda text: typer.echo(text, err=True))
    if as_json:
        sys.stdout.write(json.dumps(asdict(result), indent=2) + "\n")
        return
    plain = ", ".join(f"{rate:.0f} with {n} workers" for n, rate in result.plain_rates.items())
    typer.echo(f"{pairs:,} pairs [49, 384] with [4..16, 384] in .npy files")
    typer.echo(f"a PyTorch loop: {plain} (pairs/s of an epoch)")
    typer.echo(
        f"fusecli: {result.rate:.0f} pairs/s one model on one thread, "
        f"{result.side_by_side_rate:.0f} two side by side: {result.ratio:.2f} times the loop; "
        f"{result.read_seconds:.1f} s to read the files once"
    )
    if result.table_seconds is not None:
        typer.echo(f"from files to all models of the table: {result.table_seconds:.0f} s")
    if result.resident_mb is not None:
        typer.echo(f"{result.resident_mb:.0f} MB resident at most")


def _bench_stack(pairs: int, as_json: bool) -> None:
    from fusecli.bench.processes import bench_stack

    result = bench_stack(pairs)
    if as_json:
        sys.stdout.write(json.dumps(asdict(result), indent=2) + "\n")
        return
    typer.echo(
        f"a stack of {pairs:,} pairs, {result.file_gb:.1f} GB, from file to file: "
        f"{result.seconds:.1f} s, {result.rate:.0f} pairs/s, "
        f"{result.rate / result.memory_rate:.0%} of the rate from memory"
        + ("" if result.resident_mb is None else f", {result.resident_mb:.0f} MB resident")
    )


def _bench_in_memory(
    tokens: tuple[tuple[int, ...], tuple[int, ...]],
    shapes: BenchShapes,
    measurements: Measurements,
    computing: BenchComputing,
    as_json: bool,
) -> None:
    from fusecli.bench.in_memory import RowOptions, bench_rows, measure_peak
    from fusecli.bench.processes import bench_process
    from fusecli.fusion.backend.device import resolve_device

    device, dtype, turns = resolve_device(computing.device), computing.dtype, measurements.turns
    plain = computing.plain_dtype or dtype
    peak = measure_peak(device, dtype)
    if not as_json:
        typer.echo(
            f"{device}, fusecli {dtype} against plain {plain}, D = {shapes.dim}, "
            f"H = {shapes.heads}, {shapes.pairs} pairs, {turns} turns; "
            f"matrix-product peak {peak:.0f} GFLOP/s"
        )
        typer.echo(_ROW_HEADINGS)
    rows = []
    options = RowOptions(
        device=device,
        dtype=dtype,
        engine=computing.engine,
        plain_dtype=plain,
        image_tokens=tokens[0],
        text_tokens=tokens[1],
        dim=shapes.dim,
        heads=shapes.heads,
        pairs=shapes.pairs,
        turns=turns,
    )
    for row in bench_rows(options, peak):
        rows.append(row)
        if not as_json:
            typer.echo(_row_line(row))
    whole = bench_process(turns) if measurements.process else None
    if as_json:
        data: dict[str, object] = {"device": device, "dtype": dtype, "plain_dtype": plain}
        data |= {"engine": computing.engine, "peak_gflops": peak}
        data |= {"rows": [asdict(row) for row in rows], "process": whole and asdict(whole)}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    elif whole is not None:
        typer.echo(_process_line(whole))


_ROW_HEADINGS = (
    f"{'P':>5} {'T':>4} {'plain/s':>9} {'fusecli/s':>10} {'ratio':>6}  "
    f"{'engine':<6}  {'order (scores/values)':<22} {'fewer':>6} "
    f"{'GFLOP/s':>8} {'of peak':>8} {'prepare':>8} {'apart':>8}"
)


def _row_line(row: "Row") -> str:
    """One row of the table under `_ROW_HEADINGS`."""
    order = f"{row.scores}/{row.values}" if row.scores != "none" else "one token"
    return (
        f"{row.P:>5} {row.T:>4} {row.plain_rate:>9.0f} {row.rate:>10.0f} "
        f"{row.ratio:>6.2f}  {row.engine:<6}  {order:<22} {row.fewer:>6.1f} "
        f"{row.gflops:>8.0f} {row.peak_share:>8.0%} "
        f"{row.prepare_s * 1e3:>6.0f}ms {row.deviation:>8.0e}"
    )


def _process_line(whole: "ProcessResult") -> str:
    """The seconds of whole processes, from start to file."""
    return (
        f"one process, image [1, 768] and text [8, 768], from start to file: fusecli "
        f"{whole.fusecli_s:.3f} s, plain script {whole.script_s:.3f} s, "
        f"ratio {whole.ratio:.1f}"
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
