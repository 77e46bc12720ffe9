"""Weights files: written from arrays or a torch module, and read into a torch module."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import WeightsError
from fusecli.features.atomic import StagedFile, check_target
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.stored_module import module_of
from fusecli.fusion.weights_file import METADATA_KEY, SEED_KEY, open_weights, read_weights

if TYPE_CHECKING:
    from fusecli.fusion.pair_module import PairFusion


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
        UsageError, OutputError: the path is not usable.
    """
    from safetensors.numpy import save

    check_target(path, force, [], (".safetensors",))
    data = config.to_dict() | ({} if seed is None else {SEED_KEY: seed})
    # The library writes wrong numbers for arrays that are not contiguous (its issue 825).
    whole = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    content = save(whole, {METADATA_KEY: json.dumps(data)})
    with StagedFile(path, replace=force) as staged:
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
        UsageError, OutputError: the path is not usable.
        WeightsError: the module is not a fusion of fusecli.
    """
    if not hasattr(module, "config"):
        raise WeightsError(
            f"{path}: save_module takes a fusion of fusecli's, such as ImageTextFusion, found "
            f"{type(module).__name__}: save its state_dict(), and say --heads when it is used"
        )
    state = {name: t.detach().float().cpu().numpy() for name, t in module.state_dict().items()}
    write_weights(path, module.config, state, None, force)


def load_module(path: str, heads: int | None = None, prefix: str | None = None) -> PairFusion:
    """Read a weights file into a torch module, which is in training mode like every new module.

    Tensors that are not part of the fusion, such as a head behind it, are not read;
    `fusecli inspect` names them.

    Args:
        path: .safetensors, .npz, .pt, .pth or .ckpt, or the folder of a training run.
        heads: H, for files that do not say (those of the published module); without it 8 is
            assumed, with a warning.
        prefix: of the names of the parameters to take, where a file holds several modules.

    Raises:
        FeatureFileError, WeightsError, UsageError: the errors of `fusecli fuse --weights`.
    """
    import torch

    from fusecli.fusion.torch_modules import build_module

    weights = open_weights(path, prefix)
    with weights.file:
        found = module_of(weights, ModuleOptions(heads=heads))
        config = found.config
        if found.heads_assumed:
            warnings.warn(
                f"{path} does not say how many heads it has, {config.num_heads} are assumed: "
                "say heads=",
                stacklevel=2,
            )
        arrays = read_weights(weights, dict.fromkeys(config.parameter_shapes(), slice(None)))
    module = build_module(config)
    module.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    return module
