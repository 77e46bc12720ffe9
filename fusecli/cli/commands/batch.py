"""`fusecli batch IMAGES TEXTS -o DIR`: many pairs, in a run that can be stopped at any moment."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from fusecli.cli.options import (
    AllowEmptyImage,
    AllowNonfinite,
    Alpha,
    Debug,
    Device,
    Dim,
    Direction,
    Dtype,
    Engine,
    FfnDim,
    Gate,
    Heads,
    ImageAxes,
    ImageKey,
    Layers,
    Method,
    Norm,
    NullToken,
    OutDtype,
    Pool,
    Quiet,
    Residual,
    Seed,
    TextAxes,
    TextKey,
    Weights,
    parse_bytes,
)
from fusecli.cli.progress import Progress, print_path

_FAILED_PAIRS = 3


def batch(
    images: Annotated[
        str | None,
        typer.Argument(help="Folder of image features, or a .safetensors file keyed by id."),
    ] = None,
    texts: Annotated[
        str | None, typer.Argument(help="The same for texts; left out where one file holds both.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The output folder.", show_default=False)
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(help="A .csv, .jsonl or .parquet file that lists the pairs."),
    ] = None,
    image_pattern: Annotated[
        str | None, typer.Option(help="Names of the images, such as {id}_img.npy.")
    ] = None,
    text_pattern: Annotated[
        str | None, typer.Option(help="Names of the texts, such as {id}.txt.npy.")
    ] = None,
    strict_pairs: Annotated[
        bool, typer.Option("--strict-pairs", help="What has no partner is an error.")
    ] = False,
    keyed: Annotated[
        bool | None,
        typer.Option(
            "--keyed/--no-keyed",
            help="Folders hold tensors by id, or a file a sample. Default: by their names.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Of the results: npy, safetensors or npz. Default: npy, or safetensors where a "
            "pair has several tensors."
        ),
    ] = None,
    pack: Annotated[
        bool,
        typer.Option("--pack", help="Large safetensors files keyed by id, and an index of them."),
    ] = False,
    shard_size: Annotated[
        str | None, typer.Option(help="Bytes of one packed file: 500M, 2G. Default: 2 GB.")
    ] = None,
    on_error: Annotated[
        str, typer.Option(help="What a failed pair does to the run: skip or stop.")
    ] = "skip",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do just the pairs that failed before.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Begin anew and remove the results of the run before, or write into a foreign "
            "folder.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="Do the I-th of N parts, such as 1/8; each in a process of its own."),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Only write one index over all shards of the folder -o."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Threads that read and fuse; more for slow files. Default: one, or one a core "
            "where pairs take long to compute."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Work on a Ray cluster: HOST:PORT or auto; alone for one of this machine's own.",
            metavar="[ADDRESS]",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of each Ray worker; 0.5 shares one. Default: 0.")
    ] = None,
    method: Method = None,
    dim: Dim = None,
    heads: Heads = None,
    weights: Weights = None,
    seed: Seed = None,
    residual: Residual = None,
    norm: Norm = None,
    null_token: NullToken = None,
    gate: Gate = None,
    alpha: Alpha = None,
    layers: Layers = None,
    ffn_dim: FfnDim = None,
    direction: Direction = "text",
    pool: Pool = None,
    image_mask: Annotated[
        str | None, typer.Option(help="'none' ignores image masks, stored or listed.")
    ] = None,
    text_mask: Annotated[
        str | None, typer.Option(help="'none' ignores text masks, stored or listed.")
    ] = None,
    image_key: ImageKey = None,
    text_key: TextKey = None,
    image_axes: ImageAxes = None,
    text_axes: TextAxes = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    engine: Engine = "auto",
    out_dtype: OutDtype = "float32",
    max_memory: Annotated[
        str | None, typer.Option(help="Bound on results under way: 500M, 2G. Default: 192M.")
    ] = None,
    allow_empty_image: AllowEmptyImage = False,
    allow_nonfinite: AllowNonfinite = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON on stdout, not the folder.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fuse many pairs, one result each; run it again to go on where it was stopped.

    IMAGES and TEXTS are two folders whose files have the same names, or files of tensors keyed
    by id. Prints the output folder. Exit code 3: some pairs failed, the others are done.
    """
    from fusecli.batch import BatchOptions, RayOptions, ReadOptions, parse_shard, run_batch
    from fusecli.batch import merge as merge_shards
    from fusecli.batch.options import MAX_MEMORY, SHARD_SIZE
    from fusecli.errors import UsageError
    from fusecli.fusion.weights import ModuleOptions
    from fusecli.pairs.open import PairOptions

    if output is None:
        if images is None and manifest is None and not merge:
            raise UsageError("expected IMAGES TEXTS -o DIR, or --manifest FILE -o DIR")
        raise UsageError("-o DIR is missing: where do the results go?")
    if shard_size is not None and not pack:
        raise UsageError("--shard-size is about the files of --pack")
    for side, said in (("image", image_mask), ("text", text_mask)):
        if said not in (None, "none"):
            raise UsageError(
                f"--{side}-mask {said}: a batch takes masks from beside the features or from "
                "--manifest; only 'none' is possible here"
            )
    size = SHARD_SIZE if shard_size is None else parse_bytes(shard_size, "--shard-size")
    if gpus_per_worker is not None and ray is None:
        raise UsageError("--gpus-per-worker is about the workers of --ray")
    if ray is not None and (merge or shard is not None):
        raise UsageError("--ray excludes --merge and --shard: it parts the pairs by itself")
    on_ray = None
    if ray is not None:
        on_ray = RayOptions(None if ray == "local" else ray, gpus_per_worker or 0.0)
    with Progress("batch", quiet) as progress, _stdout_for_paths_only(on_ray is not None):
        if merge:
            if images is not None or manifest is not None or shard is not None or force:
                raise UsageError("--merge takes only -o DIR: the run is in that folder")
            summary = merge_shards(output, progress.tell)
        else:
            options = BatchOptions(
                pairs=PairOptions(
                    images=images,
                    texts=texts,
                    manifest=manifest,
                    image_pattern=image_pattern,
                    text_pattern=text_pattern,
                    strict_pairs=strict_pairs,
                    keyed=keyed,
                ),
                output=output,
                format=format,
                pack=pack,
                shard_size=size,
                switches=ModuleOptions(
                    method=method,
                    dim=dim,
                    heads=heads,
                    residual=residual,
                    norm=norm,
                    null_token=null_token,
                    gate=gate,
                    alpha=alpha,
                    layers=layers,
                    ffn_dim=ffn_dim,
                ),
                direction=direction,
                pool=pool,
                weights=weights,
                seed=seed,
                reading=ReadOptions(
                    image_key,
                    text_key,
                    image_axes,
                    text_axes,
                    image_mask is None,
                    text_mask is None,
                    allow_empty_image,
                    allow_nonfinite,
                ),
                device=device,
                dtype=dtype,
                engine=engine,
                out_dtype=out_dtype,
                on_error=on_error,
                retry_failed=retry_failed,
                force=force,
                shard=None if shard is None else parse_shard(shard),
                workers=workers,
                max_memory=MAX_MEMORY if max_memory is None else parse_bytes(max_memory),
                ray=on_ray,
            )
            summary = run_batch(options, progress.tell, progress.update)
        for line in summary.lines():
            progress.tell(line)
    if as_json:
        sys.stdout.write(summary.to_json())
    else:
        print_path(summary.output)
    if summary.all_failed:
        raise typer.Exit(_FAILED_PAIRS)


@contextlib.contextmanager
def _stdout_for_paths_only(ray: bool) -> Iterator[None]:
    """Ray prints to stdout what becomes of its processes; what concerns people is told."""
    if not ray:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
