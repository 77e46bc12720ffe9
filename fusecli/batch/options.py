"""The options of `fusecli batch`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from fusecli.batch.literals import ON_ERROR, OnError
from fusecli.batch.store.layout import Shard
from fusecli.errors import UsageError, refuse_empty_name
from fusecli.features.formats.table import WRITABLE_ENDINGS
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.literals import Direction, Dtype, Engine, OutDtype, Pool
from fusecli.fusion.options import (
    ModuleOptions,
    check_choice,
    check_computing,
    check_origin,
    check_result,
)
from fusecli.fusion.results import BOTH
from fusecli.fusion.weights_file import weights_path
from fusecli.pairs.open import PairOptions

# A pair's file has the name of its format as its ending.
FORMATS = tuple(ending.removeprefix(".") for ending in WRITABLE_ENDINGS)
SHARD_SIZE = 2 * 10**9
MAX_MEMORY = 192 << 20


@dataclass(frozen=True)
class RayOptions:
    """Work on a Ray cluster.

    Attributes:
        address: of a cluster that runs, `host:port` or "auto"; None starts one on this machine.
        gpus_per_worker: that each worker has for itself; parts of one are possible.
    """

    address: str | None = None
    gpus_per_worker: float = 0.0


@dataclass(frozen=True)
class BatchOptions:
    """A whole run; the meanings are those of the options of that name.

    Attributes:
        pairs: where pairs come from.
        output: the output folder.
        format: "npy", "npz" or "safetensors"; None is npy, or safetensors where there are
            several tensors a pair.
        pack: write safetensors shards of `shard_size` bytes instead of a file a pair.
        seed: of initial weights where no weights are given; None means 0.
        workers: threads that read and fuse, or workers on Ray; None is what the pairs, or the
            cluster, are worth.
        verify: compare what is in the inputs, and in the results of earlier runs, not only
            their names, sizes and times.
        prune: remove the results of pairs that are no longer among the inputs.
        strict: a pair with a diagnosis fails.
        max_memory: bytes that results under way may take.
    """

    pairs: PairOptions
    output: str
    format: str | None = None
    pack: bool = False
    shard_size: int = SHARD_SIZE
    switches: ModuleOptions = field(default_factory=ModuleOptions)
    direction: Direction = "text"
    pool: Pool | None = None
    weights: str | None = None
    seed: int | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    device: str = "auto"
    dtype: Dtype = "float32"
    engine: Engine = "auto"
    out_dtype: OutDtype = "float32"
    on_error: OnError = "skip"
    retry_failed: bool = False
    force: bool = False
    shard: Shard | None = None
    workers: int | None = None
    max_memory: int = MAX_MEMORY
    ray: RayOptions | None = None
    verify: bool = False
    prune: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", os.fspath(self.output))
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_path(os.fspath(self.weights)))
        # Packed results have no files of their own whose names could collide.
        pairs = replace(
            self.pairs,
            output=self.output,
            ending=self.ending,
            ending_said=self.format is not None,
            refused=self.refused,
        )
        object.__setattr__(self, "pairs", pairs)

    @property
    def several(self) -> bool:
        """Whether a pair's result is more than one tensor."""
        return self.direction == BOTH or self.pool is not None

    @property
    def written(self) -> str:
        """The format of the files of single pairs."""
        return self.format or ("safetensors" if self.several else "npy")

    @property
    def ending(self) -> str:
        """Of the files of single pairs; "" where there are none."""
        return "" if self.pack else f".{self.written}"

    @property
    def refused(self) -> dict[str, str]:
        """Endings of files of single pairs that cannot hold a result, and why."""
        refused = {}
        if self.several:
            what = "--direction both" if self.direction == BOTH else f"--pool {self.pool}"
            refused[".npy"] = (
                f"{what} gives more than one tensor a pair, and .npy holds one: expected "
                "safetensors or npz"
            )
        if self.out_dtype == "bfloat16":
            why = "--out-dtype bfloat16 needs safetensors, or --pack: .npy has no bfloat16"
            refused |= {".npy": why, ".npz": why}
        return refused

    def check(self) -> None:
        """Raises:
        UsageError: the options contradict each other or are not possible.
        """
        refuse_empty_name(self.output)
        if self.output == "-":
            raise UsageError("-o -: a batch writes files, name a folder (./- for one called -)")
        check_choice("--format", self.format, FORMATS)
        check_choice("--on-error", self.on_error, ON_ERROR)
        check_computing(self.device, self.dtype, self.engine)
        check_result(self.out_dtype, self.direction, self.pool)
        check_origin(self.weights, self.seed)
        if self.pack and self.format is not None:
            raise UsageError("--pack writes safetensors shards: leave --format out")
        # The rows of a manifest may each say their own.
        if self.ending in self.refused and (self.format or self.pairs.manifest is None):
            raise UsageError(f"--format {self.written}: {self.refused[self.ending]}")
        self._check_ray()
        if self.prune and self.shard is not None:
            raise UsageError("--prune is about all pairs: run it once without --shard")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, found {self.workers}")
        if self.force and self.retry_failed:
            raise UsageError("--force does every pair anew, --retry-failed only those that failed")
        if self.force and self.shard is not None:
            raise UsageError(
                "--force begins the run of all shards anew: say another -o, or --force "
                "without --shard"
            )

    def _check_ray(self) -> None:
        on = self.ray
        if on is None:
            return
        if on.address not in (None, "auto") and not re.fullmatch(r"[^/:]+:\d+", on.address):
            raise UsageError(
                f"--ray {on.address}: expected HOST:PORT of a cluster's head, auto, or nothing"
            )
        if not 0 <= on.gpus_per_worker < float("inf"):
            raise UsageError(f"--gpus-per-worker {on.gpus_per_worker:g}: expected 0 or more")
        if on.gpus_per_worker and self.engine == "numpy":
            raise UsageError("--engine numpy computes on the CPU only: leave --gpus-per-worker out")
        if self.device not in _CPU and not on.gpus_per_worker:
            raise UsageError(f"--device {self.device} with --ray needs --gpus-per-worker")


_CPU = ("auto", "cpu")


def parse_shard(text: str) -> Shard:
    """`3/8`: the third of eight.

    Raises:
        UsageError: something else.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/8")
    return Shard(int(match[1]), int(match[2]))
