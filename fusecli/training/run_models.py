"""The models of a training run in its folder: `weights.safetensors` and `models/`.

`weights.safetensors` is what `fusecli fuse --weights` takes: the fusion's parameters for raw
features under their usual names, and the head under `head.*`. Equal contents are equal bytes.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import OutputError
from fusecli.features.formats.safetensors import file_start
from fusecli.fusion.run_sums import MODELS, model_names
from fusecli.fusion.weights_file import METADATA_KEY, RUN_WEIGHTS
from fusecli.training.checkpoint import make_folder
from fusecli.training.examples import ChannelStatistics
from fusecli.training.fitted import Fitted
from fusecli.training.stored import Member
from fusecli.training.stored_run import HEAD_KEY, MODEL_KEY, MODEL_VERSION

CHECKPOINTS = "checkpoints"

Tensors = dict[str, NDArray[np.float32]]
Write = Callable[[str, Iterable[bytes | memoryview]], None]


def save_models(
    path: Path,
    write: Write,
    fitted: Sequence[Fitted],
    head: Mapping[str, Any],
    calibrations: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write `weights.safetensors` and `models/`, and delete other models there.

    One that another run has left would be taken for a model of this one.

    Args:
        path: of the run's folder.
        write: writes a file there, by its name in the folder and the parts of its content.
        fitted: the lines of the table, "fusion" among them.
        head: what a user of the head needs: task, names of labels, and so on; plain data.
        calibrations: temperature and thresholds by the model's name; plain data.

    Raises:
        OutputError: a file cannot be written, or a link or a folder stands in its place.
    """
    make_folder(path / MODELS)
    written = set()
    for model in fitted:
        calibration = dict(calibrations.get(model.name, {}))
        for number, member in enumerate(model.members):
            meta = _member_meta(model, member, number, calibration)
            if model.name == "fusion" and number == 0:
                _save_weights(write, member, {**head, **meta})
            else:
                name = file_name(model.name, number)
                _write_model(write, f"{MODELS}/{name}", _tensors(member), {MODEL_KEY: meta})
                written.add(name)
        if model.constant is not None:
            meta = {"name": model.name, "variant": model.info.variant}
            meta["calibration"] = calibration
            name = file_name(model.name, 0)
            constant = {"constant": model.constant}
            _write_model(write, f"{MODELS}/{name}", constant, {MODEL_KEY: meta})
            written.add(name)
    _delete_models_except(path, written)


def _delete_models_except(path: Path, written: Collection[str]) -> None:
    folder = path / MODELS
    refuse_odd(str(folder), os.lstat(folder).st_mode)  # hours after `check`
    for name in model_names(folder):
        path = folder / name
        if name in written:
            continue
        refuse_odd(str(path), os.lstat(path).st_mode)
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path}: cannot be deleted: {error.strerror}") from None


def _save_weights(write: Write, member: Member, meta: Mapping[str, Any]) -> None:
    tensors = {n.removeprefix("fusion."): a for n, a in member.arrays.items()}
    for side, found in (("text", member.trained_text), ("image", member.trained_image)):
        tensors[f"head.input.{side}_mean"] = found.mean
        tensors[f"head.input.{side}_std"] = found.std
    metadata = {METADATA_KEY: member.spec.fusion, HEAD_KEY: dict(meta)}
    _write_model(write, RUN_WEIGHTS, tensors, metadata)


def _write_model(write: Write, name: str, tensors: Tensors, metadata: Mapping[str, Any]) -> None:
    whole = {n: np.ascontiguousarray(a, np.float32) for n, a in sorted(tensors.items())}
    numbers = (array.reshape(-1).view(np.uint8).data for array in whole.values())
    write(name, [_header(whole, metadata), *numbers])


def refuse_odd(path: str, mode: int) -> None:
    """Raises:
    OutputError: something else stands where a file or a folder of the run has its place.
    """
    folder = os.path.basename(path) in (MODELS, CHECKPOINTS)
    expected = "folder" if folder else "file"
    if stat.S_ISLNK(mode):
        raise OutputError(
            f"{path}: is a link, which is not followed in a run's folder; expected a "
            f"{expected}: remove it"
        )
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OutputError(f"{path}: is {kind}; expected a {expected}: remove it")


def file_name(model: str, number: int) -> str:
    """Of a model's network in `models/`: `concat-mlp.safetensors`, `fusion.seed-1.safetensors`."""
    slug = "-".join(part for part in model.lower().split() if part.isalnum())
    return f"{slug}.safetensors" if number == 0 else f"{slug}.seed-{number}.safetensors"


def _member_meta(
    model: Fitted, member: Member, number: int, calibration: dict[str, Any]
) -> dict[str, Any]:
    blend = {} if model.blend is None else {"blend": asdict(model.blend)}
    return {
        **blend,
        "version": MODEL_VERSION,
        "name": model.name,
        "number": number,
        "variant": model.info.variant,
        "spec": member.spec.to_dict(),
        "centre": member.centre,
        "spread": member.spread,
        "calibration": calibration,
    }


def _tensors(member: Member) -> Tensors:
    tensors = dict(member.arrays)
    for name in ("text", "image", "trained_text", "trained_image"):
        statistics: ChannelStatistics = getattr(member, name)
        tensors[f"input.{name}.mean"] = statistics.mean
        tensors[f"input.{name}.std"] = statistics.std
    return tensors


def _header(tensors: Tensors, metadata: Mapping[str, Any]) -> bytes:
    """Of a safetensors file. The library's own writer gives metadata in a random order."""
    shapes = {name: array.shape for name, array in tensors.items()}
    return file_start(
        shapes, "float32", {k: json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    )
