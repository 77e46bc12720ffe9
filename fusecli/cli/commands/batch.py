"""`fusecli batch IMAGES TEXTS -o DIR`: many pairs, in a run that can be stopped at any moment."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fusecli.batch.literals import OnError
from fusecli.cli.option_groups import (
    Computing,
    ModuleOfJob,
    QuietJsonProgram,
    Result,
)
from fusecli.cli.options import Choices, OptionGroup, option_group, parse_bytes
from fusecli.cli.pair_groups import PairsToRead, shared_values
from fusecli.cli.progress import Progress, print_path

if TYPE_CHECKING:
    from fusecli.batch import BatchOptions, RayOptions


def format_names() -> tuple[str, ...]:
    """The formats that results are written in."""
    from fusecli.batch.options import FORMATS

    return FORMATS


_FAILED_PAIRS = 3
_OWN_CLUSTER = "local"  # the value of --ray without an address


@option_group
class BatchFolder(OptionGroup):
    """The output folder and the form of what is in it."""

    heading: ClassVar[str] = "Result"
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="The output folder.")
    ] = None
    format: Annotated[
        str | None,
        Choices(format_names),
        typer.Option(
            help="Format of the results.",
            show_default="npy, or safetensors where a pair has several tensors",
        ),
    ] = None
    pack: Annotated[
        bool,
        typer.Option(
            "--pack",
            help="Write large safetensors files keyed by pair id, and an index of them, instead "
            "of one file a pair.",
        ),
    ] = False
    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Size of one file of --pack: 500M, 2G.", show_default="2 GB"
        ),
    ] = None
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Compute nothing: write one index over all shards of the folder -o.",
        ),
    ] = False


@option_group
class BatchResult(Result, BatchFolder):
    """All about the results."""


@option_group
class Run(OptionGroup):
    """How the run treats failures and what an earlier run has left."""

    heading: ClassVar[str] = "Run"
    on_error: Annotated[
        OnError, typer.Option(help="Whether a failed pair is skipped or stops the run.")
    ] = "skip"
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Do only the pairs that failed before; with --verify also those that it finds "
            "changed.",
        ),
    ] = False
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Start again and delete the results of the previous run; or write into a folder "
            "that fusecli did not make.",
        ),
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do only the I-th of N parts, such as 1/8. Each part can run in a process, or on "
            "a machine, of its own.",
        ),
    ] = None
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare the contents of the inputs with what was fused, and the results with "
            "what was written, not only their names, sizes and times.",
        ),
    ] = False
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove the results of pairs that are no longer among the inputs."
        ),
    ] = False
    strict: Annotated[bool, typer.Option("--strict", help="A pair with a diagnosis fails.")] = False


@option_group
class BatchComputing(Computing):
    """What computes, and where."""

    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How much memory the results under way may take: 500M, 2G.",
            show_default="192M",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Threads that read and fuse; more help where files are slow to read.",
            show_default="one, or one a core where pairs take long to compute",
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Work on a Ray cluster: HOST:PORT or auto. Without an address a cluster is "
            "started on this machine. Needs ray (the extra 'ray').",
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="GPUs of each Ray worker; 0.5 shares one.", show_default="0"
        ),
    ] = None

    def ray_options(self) -> "RayOptions | None":
        """The cluster, as the library takes it; None without --ray."""
        from fusecli.batch import RayOptions
        from fusecli.errors import UsageError

        if self.gpus_per_worker is not None and self.ray is None:
            raise UsageError("--gpus-per-worker is about the workers of --ray")
        if self.ray is None:
            return None
        return RayOptions(
            None if self.ray == _OWN_CLUSTER else self.ray, self.gpus_per_worker or 0.0
        )


def batch(
    inputs: PairsToRead,
    module: ModuleOfJob,
    result: BatchResult,
    run: Run,
    computing: BatchComputing,
    program: QuietJsonProgram,
) -> None:
    """Fuse many pairs, one result each. The same command again continues where it stopped.

    IMAGES and TEXTS are two folders whose files have the same names, or files of tensors keyed
    by pair id. Prints the output folder. Exit code 3: some pairs failed, the others are done.
    """
    from fusecli.batch import merge, run_batch
    from fusecli.errors import UsageError

    if result.output is None:
        if inputs.images is None and inputs.manifest is None and not result.merge:
            raise UsageError("expected IMAGES TEXTS -o DIR, or --manifest FILE -o DIR")
        raise UsageError("-o DIR is missing: where do the results go?")
    inputs.check()
    if result.shard_size is not None and not result.pack:
        raise UsageError("--shard-size is about the files of --pack")
    on_ray = computing.ray_options()
    if on_ray is not None and (result.merge or run.shard is not None):
        raise UsageError("--ray excludes --merge and --shard: it parts the pairs by itself")
    with Progress("batch", program.quiet) as progress, _stdout_for_paths_only(on_ray is not None):
        if result.merge:
            sources = (inputs.images, inputs.manifest, run.shard)
            if run.force or any(option is not None for option in sources):
                raise UsageError("--merge takes only -o DIR: the run is in that folder")
            summary = merge(result.output, progress.tell)
        else:
            options = _batch_options(inputs, module, result, run, computing)
            reached = [0, 0]

            def update(done: int, total: int) -> None:
                reached[:] = done, total
                progress.update(done, total)

            with _tells_how_to_go_on(reached, program.quiet):
                summary = run_batch(options, progress.tell, update)
        for line in summary.lines():
            progress.tell(line)
    if program.as_json:
        sys.stdout.write(summary.to_json())
    else:
        print_path(summary.output)
    if summary.all_failed:
        raise typer.Exit(_FAILED_PAIRS)


def _batch_options(
    inputs: PairsToRead,
    module: ModuleOfJob,
    result: BatchResult,
    run: Run,
    computing: BatchComputing,
) -> "BatchOptions":
    """The options as the library takes them."""
    from fusecli.batch import BatchOptions, parse_shard
    from fusecli.batch.options import MAX_MEMORY, SHARD_SIZE

    assert result.output is not None
    size, memory = result.shard_size, computing.max_memory
    values = shared_values(BatchOptions, module, result, run, computing)
    values |= {
        "pairs": inputs.pair_options(),
        "reading": inputs.read_options(),
        "switches": module.module_options(),
        "shard_size": SHARD_SIZE if size is None else parse_bytes(size, "--shard-size"),
        "shard": None if run.shard is None else parse_shard(run.shard),
        "max_memory": MAX_MEMORY if memory is None else parse_bytes(memory),
        "ray": computing.ray_options(),
    }
    return BatchOptions(**values)


@contextlib.contextmanager
def _tells_how_to_go_on(reached: list[int], quiet: bool) -> Iterator[None]:
    """A signal that ends the run says how far it is; see `fusecli.cli.main`.

    Args:
        reached: pairs with a known outcome and pairs in all, as far as the run is.
        quiet: say nothing.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:
        done, total = reached
        line = f"stopped after {done:,} of {total:,} pairs; the same command goes on from there"
        if not total:
            line = "stopped; the same command goes on from there"
        elif done == total:
            line = f"stopped after all {total:,} pairs; the same command finishes what is left"
        if not quiet:
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                print(line, file=sys.stderr, flush=True)
        raise


@contextlib.contextmanager
def _stdout_for_paths_only(ray: bool) -> Iterator[None]:
    """Ray prints messages about its processes to stdout; fusecli tells what matters on stderr."""
    if not ray:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
