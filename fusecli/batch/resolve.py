"""From options and the first pairs to a spec: settled once, and kept to by what follows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any, cast

from fusecli.batch.options import BatchOptions
from fusecli.batch.run_spec import FusionSpec
from fusecli.errors import FuseError
from fusecli.features.axes import PairShapes
from fusecli.fusion.backend.device import resolve_device
from fusecli.fusion.build import check_engine
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.literals import Engine
from fusecli.fusion.options import initial_config
from fusecli.fusion.results import query_sides
from fusecli.fusion.weights import WeightsFile, config_of, open_weights, read_weights
from fusecli.pairs.open import Pair
from fusecli.pairs.reader import PairReader
from fusecli.report.report import sha256_of

_LOOKED_AT = 64  # pairs whose headers say what is typical
_SEARCHED = 1000  # for the first of them that can be read


def settle(
    o: BatchOptions, pairs: Iterable[Pair], total: int, recorded: dict[str, Any] | None
) -> FusionSpec:
    """Decide on the module, the engine and the order of products.

    Args:
        o: the options.
        pairs: all of them, from the first.
        total: how many there are.
        recorded: what an earlier part of the run wrote down; what the options leave open is
            taken from it.

    Raises:
        FuseError: the options, the weights or the first pairs do not serve.
    """
    kept = recorded or {}
    computing = kept.get("computing", {})
    with ExitStack() as stack:
        weights = sha256 = None
        if o.weights is not None:
            weights = open_weights(o.weights)
            stack.enter_context(weights.file)
            sha256 = sha256_of(weights.file)
        shapes: list[PairShapes] = []
        if "chosen_for" not in kept:
            shapes = _first_shapes(o, pairs)
        config, seed, assumed = _choose_config(o, weights, _widths(kept, shapes))
        gate = _gate(config, weights, seed)
    check_engine(config, o.engine)
    config.check_directions(query_sides(o.direction), o.weights)
    sizes = tuple(kept["chosen_for"][letter] for letter in "NTP") if "chosen_for" in kept else None
    spec = FusionSpec(
        config=config,
        weights=o.weights,
        sha256=sha256,
        seed=seed,
        direction=o.direction,
        pool=o.pool,
        gate=gate,
        reading=o.reading,
        device=_open_choice(_elsewhere(o), computing.get("device")),
        dtype=o.dtype,
        engine=cast(Engine, _open_choice(o.engine, computing.get("engine"))),
        threads=computing.get("threads"),
        out_dtype=o.out_dtype,
        sizes=sizes or _typical(shapes, total),
        heads_assumed=assumed,
    )
    if o.ray is not None and spec.device != "cpu":
        return replace(spec, engine="torch")  # this machine may not have what workers have
    return _resolved(spec)


def _elsewhere(o: BatchOptions) -> str:
    """The device that was said, or what workers on Ray are given."""
    if o.ray is None or o.device != "auto":
        return o.device
    return "cuda" if o.ray.gpus_per_worker else "cpu"


def _open_choice(said: str, recorded: str | None) -> str:
    return said if said != "auto" or recorded is None else recorded


def _first_shapes(o: BatchOptions, pairs: Iterable[Pair]) -> list[PairShapes]:
    looking = PairReader(o.reading)
    shapes: list[PairShapes] = []
    first: FuseError | None = None
    for index, pair in enumerate(islice(pairs, _SEARCHED)):
        if index >= _LOOKED_AT and shapes:
            break
        try:
            shapes.append(looking.shapes(pair))
        except FuseError as error:
            first = first or error
    if not shapes and first is not None:
        raise type(first)(f"none of the first pairs can be read, the first because of {first}")
    # One pair of other widths among them fails like any other; it does not decide.
    widths = Counter((s.image.width, s.text.width) for s in shapes)
    usual = max(widths, key=lambda each: widths[each])
    return [s for s in shapes if (s.image.width, s.text.width) == usual]


def _typical(shapes: list[PairShapes], total: int) -> tuple[int, int, int]:
    # Pairs with one image token have an order of their own.
    some = [s.P for s in shapes if s.P > 1] or [1]
    T = statistics.median_high(s.T for s in shapes)
    return total, T, statistics.median_high(some)


def _widths(kept: dict[str, Any], shapes: list[PairShapes]) -> tuple[int, int]:
    """Of image and text, as the run began with them, whatever comes first now."""
    if "chosen_for" in kept:
        return kept["module"]["image_dim"], kept["module"]["text_dim"]
    return shapes[0].image.width, shapes[0].text.width


def _choose_config(
    o: BatchOptions, weights: WeightsFile | None, widths: tuple[int, int]
) -> tuple[FusionConfig, int | None, bool]:
    if weights is not None:
        config, assumed = config_of(weights, o.switches)
        return config, weights.seed, assumed
    config, seed = initial_config(o.switches, o.seed, *widths, "a text of the first pairs")
    return config, seed, False


def _gate(config: FusionConfig, weights: WeightsFile | None, seed: int | None) -> float | None:
    if not config.gate:
        return None
    rows = {"gate": slice(None)}
    if weights is None:
        return float(initial_weights(config, seed or 0, rows)["gate"][0])
    return float(read_weights(weights, rows)["gate"][0])


def _resolved(spec: FusionSpec) -> FusionSpec:
    """The same with the engine and device that "auto" stands for here, and torch's threads."""
    if spec.engine == "auto" or spec.device == "auto":
        asking = query_sides(spec.direction)[0]
        fusion = spec.build(asking, spec.sizes[2 if asking == "text" else 1] == 1)
        # Which of several equal devices computes is no matter: jobs of an array see other numbers.
        device = fusion.device.partition(":")[0]
        spec = replace(spec, engine=fusion.engine, device=device)
    elif spec.device != "cpu":
        resolve_device(spec.device)
    if spec.threads is None and (spec.engine, spec.device) == ("torch", "cpu"):
        import torch

        return replace(spec, threads=torch.get_num_threads())
    return spec
