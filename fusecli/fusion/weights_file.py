"""Weights files: find the parameters of a fusion by the header, and read them on request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError, WeightsError, shortened
from fusecli.features.file import FeatureFile, open_features, sha256_of
from fusecli.fusion.config import FusionConfig, shown
from fusecli.fusion.run_sums import METRICS, check_sum, sums_of_run
from fusecli.records import record

METADATA_KEY = "fusecli"
SEED_KEY = "initial_seed"
# In the folder of a training run.
RUN_RECORD, RUN_WEIGHTS = "run.json", "weights.safetensors"
# In a file without metadata these parameters show which prefix all of them have.
_ANCHORS = ("text_proj.weight", "projection.weight")
# Prefixes that the reader of .pt files removes where all keys have them.
_LEFT_OUT = ("state_dict.", "model_state_dict.", "model.")


@record
class WeightsFile:
    """An open weights file; its numbers are not read yet.

    Attributes:
        file: the open file.
        prefix: of every parameter's name ("module." and the like).
        config: from the metadata, or None for a state dict without metadata.
        seed: the seed of initial weights that were never trained, or None.
        bare: it is an attention alone, and its projections are the identity.
    """

    file: FeatureFile
    prefix: str
    config: FusionConfig | None
    seed: int | None
    bare: bool = False

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self.file.name

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor under the prefix, by its name without the prefix."""
        return {
            key.removeprefix(self.prefix): stored.shape
            for key, stored in self.file.tensors.items()
            if key.startswith(self.prefix)
        }

    def has(self, name: str) -> bool:
        """Whether a tensor of that name is stored."""
        return self.prefix + name in self.file.tensors

    def sources(self, name: str) -> tuple[str, ...]:
        """The stored tensors that a parameter is made of.

        A state dict without metadata may hold the three input matrices of attention one by one, as
        torch stores them where kdim or vdim are given, and its layers may have no bias.

        Returns:
            Its own name; several names, whose rows are joined; or no name for a bias that is not
            stored and is taken as zero.

        Raises:
            WeightsError: there is no such parameter.
        """
        if self.has(name):
            return (name,)
        if self.config is None:
            parts = tuple(f"attention.{part}_proj_weight" for part in "qkv")
            if name == "attention.in_proj_weight" and all(map(self.has, parts)):
                return parts
            if self._bias_left_out(name):
                return ()
            layer, _, kind = name.rpartition(".")
            if kind == "bias" and layer.endswith("norm") and self.has(f"{layer}.weight"):
                raise WeightsError(
                    f"{self.name}: has {layer}.weight and no {name}, as an RMSNorm has, or a "
                    f"LayerNorm without bias; for the latter store {name} as zeros, the former is "
                    "not what fusecli computes"
                )
        raise WeightsError(
            f"{self.name}: these weights have no {name}; there are {_listed(self.file)}"
        )

    def _bias_left_out(self, name: str) -> bool:
        layer, _, kind = name.rpartition(".")
        if layer.endswith("norm") or kind not in ("bias", "in_proj_bias"):
            return False
        both = {"attention.in_proj_bias", "attention.out_proj.bias"}
        # nn.MultiheadAttention has both of its biases or none.
        return name not in both or not any(map(self.has, both))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter.

        Raises:
            WeightsError: there is no such parameter.
        """
        parts = [self.file.tensors[self.prefix + part].shape for part in self.sources(name)]
        if not parts:
            if name.endswith("in_proj_bias"):
                return (3 * self.shape(name.replace("in_proj_bias", "out_proj.weight"))[0],)
            return self.shape(name.removesuffix("bias") + "weight")[:1]
        if len(parts) > 1 and len(set(parts)) == 1 and len(parts[0]) == 2:
            return (len(parts) * parts[0][0], parts[0][1])
        return parts[0]


def weights_path(name: str) -> str:
    """The weights file that a path names: itself, or the one in a training run's folder."""
    inside = os.path.join(name, RUN_WEIGHTS)
    return inside if name and os.path.isdir(name) and os.path.exists(inside) else name


def open_weights(name: str, prefix: str | None = None) -> WeightsFile:
    """Open a weights file by its header.

    Args:
        name: .safetensors, .npz, or .pt, .pth and .ckpt (read without running code), or the
            folder of a training run.
        prefix: of the names of the parameters to take, where a file holds several modules.

    Raises:
        FeatureFileError: the file is damaged.
        WeightsError: it does not hold a fusion's parameters.
    """
    if name == "-":
        raise UsageError("--weights cannot be read from stdin: give a file")
    path = weights_path(name)
    if name and path == name and os.path.isdir(name):
        if os.path.exists(os.path.join(name, RUN_RECORD)):
            raise WeightsError(
                f"{name}: holds no {RUN_WEIGHTS}: the training run in it is not finished (run the "
                "same fusecli train command again)"
            )
        raise WeightsError(
            f"{name}: is a folder without {RUN_WEIGHTS}: give a weights file, or the folder of a "
            "finished training run (fusecli train -o)"
        )
    file = open_features(path)
    try:
        refuse_other_weights(file)
        return weights_in(file, prefix)
    except BaseException:
        file.close()
        raise


def records_beside(path: str) -> list[str]:
    """The records of a finished training run that are read with its weights; none for other files.

    Args:
        path: of the weights.
    """
    folder, name = os.path.split(path)
    records = [os.path.join(folder, record) for record in (RUN_RECORD, METRICS)]
    return records if name == RUN_WEIGHTS and all(map(os.path.lexists, records)) else []


def refuse_other_weights(file: FeatureFile) -> None:
    """Refuse the weights file in a training run's folder that is not the one the run has written.

    A copy elsewhere is used as it is, and so is one beside which no finished run is recorded.

    Args:
        file: open.

    Raises:
        FeatureFileError: it is another, or what the run says of its files is damaged.
    """
    if not records_beside(file.name):
        return
    folder = os.path.dirname(file.name)
    sums = sums_of_run(folder)
    if sums is not None:
        check_sum(sums, folder, RUN_WEIGHTS, sha256_of(file))


def weights_in(file: FeatureFile, prefix: str | None = None) -> WeightsFile:
    """Find a fusion's parameters in an open file.

    Args:
        file: the file.
        prefix: as for `open_weights`.

    Raises:
        WeightsError: it does not hold them.
    """
    name = file.name
    if list(file.tensors) == [""]:
        raise WeightsError(f"{name}: holds one array without a name, expected a fusion's weights")
    config = seed = None
    if METADATA_KEY in file.metadata:
        data = _metadata(file.metadata[METADATA_KEY], name)
        seed = data.pop(SEED_KEY, None)
        if seed is not None and type(seed) is not int:
            raise WeightsError(f"{name}: its fusecli metadata says {SEED_KEY} = {shown(seed)}")
        config = FusionConfig.from_dict(data, name)
        if not config.has_weights:
            raise WeightsError(
                f"{name}: its fusecli metadata is of a {config.method} without weights"
            )
    if config is None and not _has_anchor(file):
        from fusecli.fusion.bare_attention import bare_prefix, with_identity

        bare = bare_prefix(file, prefix)
        if bare is not None:
            return WeightsFile(with_identity(file, bare), bare, None, None, bare=True)
    return WeightsFile(file, _prefix(file, config, prefix), config, seed)


def _has_anchor(file: FeatureFile) -> bool:
    return any(key.endswith(_ANCHORS) for key in file.tensors)


def read_weights(weights: WeightsFile, rows: Mapping[str, slice]) -> dict[str, NDArray[np.float32]]:
    """Read parameters as float32.

    Args:
        weights: the open file, checked by `module_of`.
        rows: which parameters, and which rows of each.

    Raises:
        WeightsError: a weight is NaN or infinite.
        FeatureFileError: the file was changed while it was read.
    """
    arrays = {}
    for name, part in rows.items():
        sources, shape = weights.sources(name), weights.shape(name)
        start, stop, _ = part.indices(shape[0])
        if len(sources) == 1:
            arrays[name] = _read(weights, sources[0], start, stop)
        elif sources:
            rows_of = [_read(weights, source, 0, shape[0] // len(sources)) for source in sources]
            arrays[name] = np.concatenate(rows_of)[start:stop]
        else:
            arrays[name] = np.zeros(stop - start, np.float32)
    weights.file.refuse_changed()
    return arrays


def _read(weights: WeightsFile, name: str, start: int, stop: int) -> NDArray[np.float32]:
    stored = weights.file.tensors[weights.prefix + name]
    stored.check_readable()
    array = stored.part(0, start, stop)
    if not np.isfinite(array).all():
        raise WeightsError(f"{stored.where}: holds NaN or infinity, expected finite weights")
    return array


def _prefix(file: FeatureFile, config: FusionConfig | None, wanted: str | None) -> str:
    """The prefix that all names of parameters have."""
    anchors = _ANCHORS if config is None else (next(iter(config.parameter_shapes())),)
    prefixes: list[str] = []
    for anchor in anchors:
        found = (key.removesuffix(anchor) for key in file.tensors if key.endswith(anchor))
        prefixes = [prefix for prefix in sorted(found) if not prefix or prefix.endswith(".")]
        if prefixes:
            break
    if not prefixes:
        raise WeightsError(
            f"{file.name}: expected the weights of one fusion, found no {anchors[0]}; there are "
            f"{_listed(file)}{_remedy(file)}"
        )
    shown_prefixes = ", ".join(shortened(repr(prefix)) for prefix in prefixes[:12])
    if wanted is not None:
        given = wanted if not wanted or wanted.endswith(".") else f"{wanted}."
        fits = [p for p in prefixes if given == p] or [
            p for p in prefixes if given.endswith(p) and given.removesuffix(p) in _LEFT_OUT
        ]
        if len(fits) != 1:
            raise WeightsError(
                f"{file.name}: --weights-prefix {wanted}: no fusion's parameters are under that "
                f"name; there are some under {shown_prefixes}"
            )
        return fits[0]
    if len(prefixes) > 1:
        raise WeightsError(
            f"{file.name}: expected the weights of one fusion, found several, under "
            f"{shown_prefixes}: choose one with --weights-prefix"
        )
    return prefixes[0]


def _remedy(file: FeatureFile) -> str:
    """What to do about the weights of other modules, as the end of a sentence."""
    from fusecli.fusion.bare_attention import bare_prefixes

    bare = bare_prefixes(file)
    if named := next(filter(None, bare), None):
        return (
            f"; --weights-prefix {named.removesuffix('.')} takes the nn.MultiheadAttention of "
            "that name alone"
        )
    if bare:
        return "; without --weights-prefix its nn.MultiheadAttention is taken alone"
    from fusecli.fusion.split_attention import remedy_for_split

    if split := remedy_for_split(file):
        return split
    if any(key.endswith("kernel") for key in file.tensors):
        return "; kernel is what Flax and Keras call a weight, which torch stores transposed"
    return (
        "; fusecli's attention is the linear layers text_proj and image_proj and an "
        "nn.MultiheadAttention called attention"
    )


def _listed(file: FeatureFile) -> str:
    return ", ".join(sorted(map(shortened, file.tensors))[:12])


def _metadata(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise WeightsError(f"{where}: its fusecli metadata is not JSON") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{where}: its fusecli metadata is not a JSON object")
    return data
