"""From options and the first pairs to a run's spec: decided once, and kept by what follows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import cast

from fusecli.batch.options import BatchOptions
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.store.run_record import RunRecord
from fusecli.batch.weights import RunWeights, read_run_weights
from fusecli.errors import FuseError, UsageError
from fusecli.features.pair_shapes import PairShapes
from fusecli.fusion.backend.device import one_thread_a_product, resolve_device
from fusecli.fusion.build import check_engine
from fusecli.fusion.literals import Engine, MethodName
from fusecli.fusion.methods import no_attention
from fusecli.fusion.options import initial_config
from fusecli.fusion.results import query_sides
from fusecli.pairs.open import Pair
from fusecli.pairs.reader import PairReader
from fusecli.pairs.source import PairSource

_MOST_TRIED = 1000  # until one of them can be read


def resolve(
    options: BatchOptions, pairs: PairSource, recorded: RunRecord | None
) -> tuple[FusionSpec, RunWeights]:
    """Decide on the module, the engine and the order of products, and read the weights.

    Args:
        options: of the run.
        pairs: all of them.
        recorded: the record that an earlier part of the run wrote; it fills in what the options
            leave open.

    Raises:
        FuseError: the options, the weights or the first pairs are not usable.
    """
    shapes: list[PairShapes] = []
    if recorded is None:
        shapes = _first_shapes(options, pairs)
        sizes = _typical(shapes, pairs.total)
        widths = shapes[0].image.width, shapes[0].text.width
    else:  # as when the run began, also if other pairs come first now
        sizes = recorded.chosen_for.N, recorded.chosen_for.T, recorded.chosen_for.P
        widths = recorded.module.image_dim, recorded.module.text_dim
    weights = _weights(options, widths)
    config = weights.config
    check_engine(config, options.engine)
    config.check_directions(query_sides(options.direction), options.weights)
    if not config.how.gives_weights and options.pairs.manifest is not None:
        _refuse_attention_masks(options.pairs.manifest, config.method, pairs.first)
    device = engine = threads = None
    if recorded is not None:
        computing = recorded.computing
        device, engine, threads = computing.device, computing.engine, computing.threads
    spec = FusionSpec(
        config=config,
        weights=options.weights,
        sha256=weights.sha256,
        seed=weights.seed,
        direction=options.direction,
        pool=options.pool,
        gate=float(weights.load({"gate": slice(None)})["gate"][0]) if config.gate else None,
        reading=options.reading,
        device=_open_choice(_device(options), device),
        dtype=options.dtype,
        engine=cast(Engine, _open_choice(options.engine, engine)),
        threads=threads,
        out_dtype=options.out_dtype,
        sizes=sizes,
        heads_assumed=weights.heads_assumed,
        weights_prefix=options.switches.weights_prefix,
        strict=options.strict,
    )
    if options.ray is not None and spec.device != "cpu":
        return replace(spec, engine="torch"), weights  # workers may have another device
    return _resolved(spec, weights), weights


def _refuse_attention_masks(manifest: str, method: MethodName, first: Sequence[Pair]) -> None:
    """Raises:
    UsageError: the manifest lists attention masks, for a method without attention. Only the first
        pairs are looked at, since listing all takes time; later ones fail by themselves.
    """
    if any(pair.attention_mask is not None for pair in first):
        what = f"{manifest}: its column attention_mask"
        raise UsageError(f"{no_attention(what, method)}: leave the column out")


def _device(options: BatchOptions) -> str:
    """The device that was given, or what workers on Ray are given."""
    if options.ray is None or options.device != "auto":
        return options.device
    return "cuda" if options.ray.gpus_per_worker else "cpu"


def _open_choice(given: str, recorded: str | None) -> str:
    return given if given != "auto" or recorded is None else recorded


def _first_shapes(options: BatchOptions, pairs: PairSource) -> list[PairShapes]:
    headers = PairReader(options.reading)
    try:
        return _usual_shapes(headers, pairs)
    finally:
        headers.close()


def _usual_shapes(headers: PairReader, pairs: PairSource) -> list[PairShapes]:
    shapes: list[PairShapes] = []
    first: FuseError | None = None
    for some in (pairs.first, islice(pairs, len(pairs.first), _MOST_TRIED)):
        for pair in some:
            try:
                shapes.append(headers.shapes(pair))
            except FuseError as error:
                first = first or error
            except OSError as error:
                first = first or FuseError(f"{pair.image.file}: cannot be read: {error.strerror}")
            if shapes and some is not pairs.first:
                break
        if shapes:  # further pairs are listed only where none of the first can be read
            break
    if not shapes and first is not None:
        raise type(first)(f"none of the first pairs can be read, the first because of {first}")
    # A single pair of other widths fails alone; it does not decide for all.
    widths = Counter((s.image.width, s.text.width) for s in shapes)
    usual = max(widths, key=lambda pair: widths[pair])
    return [s for s in shapes if (s.image.width, s.text.width) == usual]


def _typical(shapes: list[PairShapes], total: int) -> tuple[int, int, int]:
    # Pairs with one image token have an order of their own.
    several = [s.P for s in shapes if s.P > 1] or [1]
    T = statistics.median_high(s.T for s in shapes)
    return total, T, statistics.median_high(several)


def _weights(options: BatchOptions, widths: tuple[int, int]) -> RunWeights:
    if options.weights is not None:
        return read_run_weights(options.weights, options.switches, widths[0])
    where = "a text of the first pairs"
    config, seed = initial_config(options.switches, options.seed, *widths, where)
    return RunWeights(config, None, seed)


def _resolved(spec: FusionSpec, weights: RunWeights) -> FusionSpec:
    """The same with the engine and device that "auto" stands for here, and torch's threads."""
    if spec.engine == "auto" or spec.device == "auto":
        query = query_sides(spec.direction)[0]
        # Results of the probe are reused by the work, which runs under the same conditions.
        with one_thread_a_product():
            one_token = spec.sizes[2 if query == "text" else 1] == 1
            fusion = spec.build(query, one_token, weights)
        # The number of a device is left out: jobs of an array may see the same kind under another
        # number.
        device = fusion.device.partition(":")[0]
        spec = replace(spec, engine=fusion.engine, device=device)
    elif spec.device != "cpu":
        resolve_device(spec.device)
    if spec.threads is None and (spec.engine, spec.device) == ("torch", "cpu"):
        import torch

        return replace(spec, threads=torch.get_num_threads())
    return spec
