"""A worker on Ray: a process that holds the fusion and receives several pairs at a time."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from fusecli._version import __version__
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.weights import RunWeights, read_run_weights
from fusecli.batch.worker import Fuser
from fusecli.errors import RayError
from fusecli.fusion.options import ModuleOptions
from fusecli.pairs.open import Pair
from fusecli.pairs.stamps import FileStamp
from fusecli.report.report import Diagnosis, Note

# What a worker gives back for a pair: a result without the pair.
Made = tuple[list[FileStamp], Any, str | None, list[Diagnosis], int, list[Note], int]


class Worker:
    """A Ray actor that fuses chunks of pairs.

    Args:
        spec: what is computed.
        folder: the driver's working directory, in which relative paths start.
        version: of the driver's fusecli.
    """

    def __init__(self, spec: FusionSpec, folder: str, version: str) -> None:
        self._spec, self._folder, self._version = spec, folder, version
        self._fuser: Fuser
        self._stack = contextlib.ExitStack()

    def work(self, pairs: list[Pair], budget: int) -> list[Made]:
        """Fuse pairs, as `Fuser.work` does.

        Raises:
            FuseError: an error that ends the whole run.
        """
        results = self._fuser.work(pairs, budget)
        return [
            (r.stamps, r.tensors, r.error, r.diagnoses, r.content, r.notes, r.written)
            for r in results
        ]

    def begin(self) -> None:
        """Check that this process computes the same as the driver would.

        Raises:
            RayError: another version, another file system or other weights are here.
        """
        node = socket.gethostname()
        if self._version != __version__:
            raise RayError(
                f"fusecli is {__version__} on {node} and {self._version} here: install the same"
            )
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise RayError(
                f"{self._folder}: cannot be entered on {node}: {error.strerror}: workers read "
                "the same paths as this machine, from a file system that all share"
            ) from None
        self._fuser = Fuser(self._spec, self._weights(node))
        self._stack.enter_context(self._fuser.undivided())  # for as long as this process lives

    def _weights(self, node: str) -> RunWeights:
        spec = self._spec
        if spec.weights is None:
            return RunWeights(spec.config, None, spec.seed)
        config = spec.config
        options = ModuleOptions(
            method=config.method,
            heads=config.num_heads if config.has_heads else None,
            weights_prefix=spec.weights_prefix,
        )
        weights = read_run_weights(spec.weights, options, config.image_dim)
        if weights.sha256 != spec.sha256:
            raise RayError(f"{spec.weights}: is another file on {node} than here")
        return weights
