"""What a run computes: the same for every part of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from fusecli import __version__
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.backend.device import cores
from fusecli.fusion.base import Computing, Fusion, LoadWeights
from fusecli.fusion.build import build_fusion
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.literals import Direction, Dtype, Engine, OutDtype, Pool, Side
from fusecli.fusion.settings import Sizes
from fusecli.fusion.weights import open_weights, read_weights

_WORTH_A_THREAD = 5e6  # multiply-adds a pair: as long as what Python does for it


@dataclass(frozen=True)
class FusionSpec:
    """Everything that the numbers of one pair depend on besides its own files.

    The order of products is chosen for the whole run, from the shapes of its first pairs: chosen
    anew for what is left after a stop, or for one shard, it could give other last bits.

    Attributes:
        config: the fusion.
        weights: path of the weights file, or None for initial weights.
        sha256: of that file.
        seed: of initial weights; None where there are none.
        direction: "text", "image" or "both", the sides that ask.
        pool: how tokens are pooled to one more vector, or None.
        gate: the value of the module's gate, or None.
        reading: how files are read.
        device, dtype, engine: where and in what is computed; no "auto" is left in them.
        threads: that torch computes with, since their number shows in the last bits; None where
            numpy or an accelerator computes.
        out_dtype: that is written.
        sizes: N, T and P that the order of products is chosen for.
        heads_assumed: H is a guess.
    """

    config: FusionConfig
    weights: str | None
    sha256: str | None
    seed: int | None
    direction: Direction
    pool: Pool | None
    gate: float | None
    reading: ReadOptions
    device: str
    dtype: Dtype
    engine: Engine
    threads: int | None
    out_dtype: OutDtype
    sizes: tuple[int, int, int]
    heads_assumed: bool

    @property
    def module(self) -> str:
        """What fixed the widths, for errors."""
        return self.weights or "a module as wide as most of the batch's first pairs"

    @property
    def workers(self) -> int:
        """Threads that pay: products run at the same time in all of them, Python in one.

        Measured on two cores: with pairs of one image token, a second thread that hands its
        interpreter to and fro makes a run a sixth slower.
        """
        _, T, P = self.sizes
        each = self.config.how.multiply_adds(self.config, T, P)
        return cores() if each > _WORTH_A_THREAD else 1

    def build(self, asking: Side, one_token: bool) -> Fusion:
        """Build the fusion for one side that asks.

        Args:
            asking: "text" or "image".
            one_token: for pairs whose other side has one token, or for all others.

        Raises:
            FuseError: the weights or the device do not serve.
        """
        with ExitStack() as stack:
            return build_fusion(
                self.config,
                self._loader(stack),
                self._sizes(asking, one_token),
                Computing(asking, self.device, self.dtype, self.engine, row_stable=True),
            )

    def _sizes(self, asking: str, one_token: bool) -> Sizes:
        N, T, P = self.sizes
        if asking == "text":
            P = 1 if one_token else max(2, P)
        else:
            T = 1 if one_token else max(2, T)
        return self.config.sizes(N, T, P)

    def _loader(self, stack: ExitStack) -> LoadWeights:
        if self.weights is None:
            return lambda rows: initial_weights(self.config, self.seed or 0, rows)
        weights = open_weights(self.weights)
        stack.enter_context(weights.file)
        return lambda rows: read_weights(weights, rows)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the run's record."""
        return {
            "fusecli": __version__,
            "module": self.config.to_dict(),
            "weights": {"sha256": self.sha256, "seed": self.seed},
            "result": {"direction": self.direction, "pool": self.pool, "dtype": self.out_dtype},
            "reading": asdict(self.reading),
            "computing": {
                "device": self.device,
                "dtype": self.dtype,
                "engine": self.engine,
                "threads": self.threads,
            },
            "chosen_for": dict(zip("NTP", self.sizes, strict=True)),
        }
