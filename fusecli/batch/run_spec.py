"""What a run computes: the same for every part of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fusecli.batch.store.run_record import (
    ComputingRecord,
    LayoutRecord,
    ResultRecord,
    RunRecord,
    SizesRecord,
    WeightsRecord,
)
from fusecli.batch.weights import RunWeights
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.backend.device import cores
from fusecli.fusion.base import Computing, Fusion
from fusecli.fusion.build import build_fusion
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Direction, Dtype, Engine, OutDtype, Pool, Side
from fusecli.fusion.settings import Sizes

_WORTH_A_THREAD = 5e6  # multiply-adds of a pair that take as long as the Python code around them


@dataclass(frozen=True)
class FusionSpec:
    """Everything that the numbers of one pair depend on besides its own files.

    The order of products is chosen once for the whole run, from the shapes of its first pairs. If
    a resumed run or a shard chose its own order, the last bits of its results could differ.

    Attributes:
        config: the fusion.
        weights: path of the weights file, or None for initial weights.
        sha256: of that file.
        seed: of initial weights; None where there are none.
        direction: "text", "image" or "both", the query sides.
        pool: how tokens are pooled to one more vector, or None.
        gate: the value of the module's gate, or None.
        reading: how files are read.
        device, dtype, engine: where and in what is computed; no "auto" is left in them.
        threads: number of threads of torch, which changes the last bits; None where numpy or an
            accelerator computes.
        out_dtype: type of the numbers that are written.
        sizes: N, T and P that the order of products is chosen for.
        heads_assumed: the weights file does not say H, and a usual number is taken.
        weights_prefix: the prefix that an option gave, where the weights file holds several
            modules.
        strict: a pair with a diagnosis fails.
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
    weights_prefix: str | None = field(default=None, kw_only=True)
    strict: bool = False

    @property
    def module(self) -> str:
        """What fixed the widths, for errors."""
        return self.weights or "a module as wide as most of the batch's first pairs"

    @property
    def workers(self) -> int:
        """Number of threads to use: all cores, or one for small pairs.

        Threads run matrix products at the same time, but Python code only one after the other.
        Measured on two cores: with pairs of one image token, a second thread makes a run a sixth
        slower.
        """
        _, T, P = self.sizes
        each = self.config.how.multiply_adds(self.config, T, P)
        return cores() if each > _WORTH_A_THREAD else 1

    def build(self, query: Side, one_token: bool, weights: RunWeights) -> Fusion:
        """Build the fusion for one query side.

        Args:
            query: "text" or "image".
            one_token: for pairs whose context side has one token, or for all others.
            weights: the run's.

        Raises:
            FuseError: the weights or the device are not usable.
        """
        return build_fusion(
            self.config,
            weights.load,
            self._sizes(query, one_token),
            Computing(query, self.device, self.dtype, self.engine, row_stable=True),
        )

    def _sizes(self, query: Side, one_token: bool) -> Sizes:
        N, T, P = self.sizes
        if query == "text":
            P = 1 if one_token else max(2, P)
        else:
            T = 1 if one_token else max(2, T)
        return self.config.sizes(N, T, P)

    def to_record(self, layout: LayoutRecord) -> RunRecord:
        """The record of this run, with the layout of its results."""
        return RunRecord(
            self.config,
            WeightsRecord(self.sha256, self.seed, self.weights_prefix),
            ResultRecord(self.direction, self.pool, self.out_dtype),
            self.reading,
            ComputingRecord(self.device, self.dtype, self.engine, self.threads),
            SizesRecord(*self.sizes),
            layout,
        )
