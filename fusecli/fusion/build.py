"""Build a fusion: config, weights and engine together, ready for chunks of pairs.

Everything that fuses (`job/`, `batch/`, `bench/`) calls `build_fusion` and then `Fusion.fuse`.
"""

from __future__ import annotations

from fusecli.errors import UsageError
from fusecli.fusion.base import Computing, Fusion, LoadWeights
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Engine
from fusecli.fusion.settings import Sizes


def build_fusion(
    config: FusionConfig, load: LoadWeights, sizes: Sizes, computing: Computing | None = None
) -> Fusion:
    """Choose order and engine for a job, and load, fold and place the weights it needs.

    Args:
        config: what to build.
        load: loads parameters by name, and the wanted rows of each.
        sizes: of the whole job.
        computing: where and in what; None for float32 and the text as the query side.

    Raises:
        UsageError: the method does not support that engine or direction.
        DeviceError: the device is not on this machine.
        WeightsError: a weight is NaN or infinite.
    """
    computing = computing or Computing()
    config.check_direction(computing.direction)
    check_engine(config, computing.engine)
    return config.how.build(config, load, sizes, computing)


def check_engine(config: FusionConfig, engine: Engine) -> None:
    """Raises:
    UsageError: the method does not run on that engine.
    """
    engines = config.how.engines
    if engine != "auto" and engine not in engines:
        raise UsageError(
            f"--engine {engine}: --method {config.method} runs on {' or '.join(engines)} only"
        )
