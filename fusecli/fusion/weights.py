"""Weights: initial ones from a seed, or a file of one's own or of the published module."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError, WeightsError, shortened
from fusecli.features.atomic import StagedFile, check_target
from fusecli.features.file import FeatureFile, open_features
from fusecli.fusion.config import FusionConfig, option_of, refuse_foreign
from fusecli.fusion.options import ModuleOptions as ModuleOptions

if TYPE_CHECKING:
    from fusecli.fusion.torch_modules import PairFusion

METADATA_KEY = "fusecli"
_SEED_KEY = "initial_seed"
_DROPPED = ("norm.weight", "norm.bias", "gate")  # what --no-norm and --no-gate leave unread


@dataclass(frozen=True)
class WeightsFile:
    """An open weights file; its numbers are not read yet.

    Attributes:
        file: the open file.
        prefix: what stands before every parameter's name ("module." and the like).
        config: what the file says of itself, or None for a file of the published module.
        seed: the seed of initial weights that were never trained, or None.
    """

    file: FeatureFile
    prefix: str
    config: FusionConfig | None
    seed: int | None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter.

        Raises:
            WeightsError: there is no such parameter.
        """
        stored = self.file.tensors.get(self.prefix + name)
        if stored is None:
            raise WeightsError(
                f"{self.file.name}: these weights have no {name}; there are "
                f"{', '.join(sorted(map(shortened, self.file.tensors))[:12])}"
            )
        return stored.shape


def open_weights(name: str) -> WeightsFile:
    """Open a weights file by its header.

    Args:
        name: .safetensors, .npz, or .pt/.pth (read with `weights_only=True`).

    Raises:
        FeatureFileError: the file is damaged.
        WeightsError: it does not hold a fusion's parameters.
    """
    if name == "-":
        raise UsageError("--weights cannot be read from stdin: give a file")
    file = open_features(name)
    try:
        return weights_in(file)
    except BaseException:
        file.close()
        raise


def weights_in(file: FeatureFile) -> WeightsFile:
    """Find a fusion's parameters in an open file.

    Raises:
        WeightsError: it does not hold them.
    """
    name = file.name
    if list(file.tensors) == [""]:
        raise WeightsError(f"{name}: holds one array without a name, expected a fusion's weights")
    config = seed = None
    if METADATA_KEY in file.metadata:
        data = _metadata(file.metadata[METADATA_KEY], name)
        seed = data.pop(_SEED_KEY, None)
        if seed is not None and type(seed) is not int:
            raise WeightsError(f"{name}: its fusecli metadata says {_SEED_KEY} = {seed!r}")
        config = FusionConfig.from_dict(data, name)
        if not config.has_weights:
            raise WeightsError(
                f"{name}: its fusecli metadata is of a {config.method} without weights"
            )
    anchor = _anchor(config)
    prefixes = [key.removesuffix(anchor) for key in file.tensors if key.endswith(anchor)]
    if len(prefixes) != 1:
        many = "several" if prefixes else "no"
        raise WeightsError(
            f"{name}: expected the weights of one fusion, found {many} {anchor}; there are "
            f"{', '.join(sorted(map(shortened, file.tensors))[:12])}"
        )
    return WeightsFile(file, prefixes[0], config, seed)


def config_of(weights: WeightsFile, switches: ModuleOptions) -> tuple[FusionConfig, bool]:
    """The fusion that a weights file and the options describe together.

    Args:
        weights: the open file.
        switches: the options; what the file fixes they may only repeat.

    Returns:
        The config, and whether H had to be assumed, because neither says it.

    Raises:
        WeightsError: parameters are missing, left over, or of shapes that do not fit.
        UsageError: an option contradicts the file.
    """
    name, config = weights.file.name, weights.config
    assumed = config is None and switches.heads is None
    if config is None:
        if switches.method not in (None, "attention"):
            raise WeightsError(
                f"{name}: does not say what it is, so it is read as attention's: a "
                f"{switches.method} is saved with save_module, or made by fusecli init"
            )
        config = _config_from_shapes(weights, switches.heads)
    said, own = switches.given, config.to_dict()
    for field in ("method", "embed_dim", "num_heads", "layers", "ffn_dim"):
        if field in said and field in own and said[field] != own[field]:
            raise UsageError(
                f"{option_of(field)} {said[field]} contradicts {name}, which has {own[field]}"
            )
    refuse_foreign(config.method, said)
    for field, parameter in (("norm", "norm.weight"), ("gate", "gate")):
        if getattr(switches, field) and not getattr(config, field):
            raise WeightsError(
                f"{name}: has no {parameter}: --{field} needs weights made with it "
                f"(fusecli init --{field})"
            )
    free = {"residual", "norm", "null_token", "gate", "alpha"} & said.keys()
    config = replace(config, **{field: said[field] for field in free})
    _check_parameters(weights, config)
    return config, assumed


def read_weights(weights: WeightsFile, rows: Mapping[str, slice]) -> dict[str, NDArray[np.float32]]:
    """Read parameters as float32.

    Args:
        weights: the open file, checked by `config_of`.
        rows: which parameters, and which rows of each.

    Raises:
        WeightsError: a weight is NaN or infinite.
    """
    arrays = {}
    for name, part in rows.items():
        stored = weights.file.tensors[weights.prefix + name]
        stored.check_readable()
        start, stop, _ = part.indices(stored.shape[0])
        arrays[name] = stored.part(0, start, stop)
        if not np.isfinite(arrays[name]).all():
            raise WeightsError(f"{stored.where}: holds NaN or infinity, expected finite weights")
    return arrays


def write_weights(
    path: str,
    config: FusionConfig,
    arrays: Mapping[str, NDArray[Any]],
    seed: int | None = None,
    force: bool = False,
) -> int:
    """Write a weights file, whole or not at all.

    Args:
        path: where it goes; ends in .safetensors.
        config: what the weights are of.
        arrays: the parameters under their `state_dict` names.
        seed: given for initial weights that were not trained.
        force: an existing file may be replaced.

    Returns:
        Bytes of the file.

    Raises:
        UsageError, OutputError: the path does not serve.
    """
    from safetensors.numpy import save

    check_target(path, force, [], (".safetensors",))
    data = config.to_dict() | ({} if seed is None else {_SEED_KEY: seed})
    # The library writes wrong numbers for arrays that are not contiguous (its issue 825).
    whole = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    content = save(whole, {METADATA_KEY: json.dumps(data)})
    with StagedFile(path) as staged:
        staged.begin().write(content)
        staged.publish()
    return len(content)


def save_module(module: PairFusion, path: str, force: bool = False) -> None:
    """Write a (trained) module to a file that `fusecli fuse --weights` takes as it is.

    Args:
        module: the fusion.
        path: where it goes; ends in .safetensors.
        force: an existing file may be replaced.

    Raises:
        UsageError, OutputError: the path does not serve.
        WeightsError: some other module.
    """
    if not hasattr(module, "config"):
        raise WeightsError(
            f"{path}: save_module takes a fusion of fusecli's, such as ImageTextFusion, found "
            f"{type(module).__name__}: save its state_dict(), and say --heads when it is used"
        )
    state = {name: t.detach().float().cpu().numpy() for name, t in module.state_dict().items()}
    write_weights(path, module.config, state, None, force)


def load_module(path: str, heads: int | None = None) -> PairFusion:
    """Read a weights file into a torch module, in training mode as every new module.

    Args:
        path: .safetensors, .npz, .pt or .pth.
        heads: H, for files that do not say (those of the published module); without it 8 is
            assumed, with a warning.

    Raises:
        FeatureFileError, WeightsError, UsageError: as `fusecli fuse --weights` would say.
    """
    import torch

    from fusecli.fusion.torch_modules import build_module

    weights = open_weights(path)
    with weights.file:
        config, assumed = config_of(weights, ModuleOptions(heads=heads))
        if assumed:
            warnings.warn(
                f"{path} does not say how many heads it has, {config.num_heads} are assumed: "
                "say heads=",
                stacklevel=2,
            )
        arrays = read_weights(weights, dict.fromkeys(config.parameter_shapes(), slice(None)))
    module = build_module(config)
    module.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    return module


def _anchor(config: FusionConfig | None) -> str:
    """The parameter by which the others are found; the published module's where nothing says."""
    return "text_proj.weight" if config is None else next(iter(config.parameter_shapes()))


def _metadata(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise WeightsError(f"{where}: its fusecli metadata is not JSON") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{where}: its fusecli metadata is not a JSON object")
    return data


def _config_from_shapes(weights: WeightsFile, heads: int | None) -> FusionConfig:
    text, image = weights.shape("text_proj.weight"), weights.shape("image_proj.weight")
    if len(text) != 2 or len(image) != 2 or 0 in text + image:
        raise WeightsError(
            f"{weights.file.name}: text_proj.weight {list(text)} and image_proj.weight "
            f"{list(image)} must be matrices"
        )
    norm = weights.prefix + "norm.weight" in weights.file.tensors
    gate = weights.prefix + "gate" in weights.file.tensors
    H = 8 if heads is None else heads
    return FusionConfig(text[0], H, image[1], text[1], norm=norm, gate=gate)


def _check_parameters(weights: WeightsFile, config: FusionConfig) -> None:
    name, prefix = weights.file.name, weights.prefix
    expected, anchor = config.parameter_shapes(), _anchor(config)
    for parameter, shape in expected.items():
        found = weights.shape(parameter)
        if found != shape:
            raise WeightsError(
                f"{name}: {prefix}{parameter} has shape {list(found)}, expected {list(shape)} "
                f"beside {anchor} {list(weights.shape(anchor))}"
            )
    known = {prefix + p for p in (*expected, *_DROPPED)}
    extra = [key for key in weights.file.tensors if key.startswith(prefix) and key not in known]
    if extra:
        listed = ", ".join(map(shortened, sorted(extra)[:5]))
        raise WeightsError(
            f"{name}: holds {listed} besides a fusion's parameters, "
            "which would be left out of the arithmetic"
        )
