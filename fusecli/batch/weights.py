"""The weights of a run: opened once, hashed as they are read, and nothing else is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import WeightsError
from fusecli.features.file import sha256_of
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.stored_module import StoredModule, module_of
from fusecli.fusion.weights_file import open_weights, read_weights


@dataclass(frozen=True)
class RunWeights:
    """The parameters of a run's fusion.

    Attributes:
        config: the fusion.
        sha256: of the file they were read from; None for initial weights.
        seed: of initial weights, also where a file holds them; None for trained ones.
        heads_assumed: H is a guess.
        stored: what the file says of the module; None for initial weights without a file.
        parameters: of a file, float32 under their `state_dict` names.
    """

    config: FusionConfig
    sha256: str | None
    seed: int | None
    heads_assumed: bool = False
    stored: StoredModule | None = None
    parameters: Mapping[str, NDArray[np.float32]] | None = None

    def load(self, rows: Mapping[str, slice]) -> dict[str, NDArray[np.float32]]:
        """Some rows of some parameters."""
        if self.parameters is None:
            return initial_weights(self.config, self.seed or 0, rows)
        return {name: self.parameters[name][part] for name, part in rows.items()}


def read_run_weights(path: str, options: ModuleOptions, image_dim: int) -> RunWeights:
    """Read a weights file once and for all; it may be replaced while the run works.

    Args:
        path: of the file.
        options: of the module, for what the file does not say.
        image_dim: Di of the first pairs.

    Raises:
        FuseError: the file is not usable, or it was changed while it was read.
    """
    weights = open_weights(path, options.weights_prefix)
    with weights.file:
        before = sha256_of(weights.file)
        found = module_of(weights, options, image_dim)
        names = found.config.parameter_shapes()
        parameters = read_weights(weights, dict.fromkeys(names, slice(None)))
        if sha256_of(weights.file) != before:
            raise WeightsError(
                f"{path}: was changed while it was read: wait until it is written, and run the "
                "same command again"
            )
    return RunWeights(found.config, before, weights.seed, found.heads_assumed, found, parameters)
