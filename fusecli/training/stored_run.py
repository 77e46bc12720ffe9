"""The models of a finished run, read back from its folder.

A folder may have been damaged on its way, or be somebody else's: every value is checked before
anything is built from it, and the networks that it describes must be those whose parameters are
there, so that no more memory is taken than the files' own size.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, FuseError, UsageError, shortened
from fusecli.features.file import open_features, sha256_of
from fusecli.fusion.config import FusionConfig, shown
from fusecli.fusion.run_sums import MODELS, Sums, check_sum, models_of, sums_of_run
from fusecli.fusion.weights_file import RUN_RECORD, RUN_WEIGHTS
from fusecli.training.blend import Blend, parts_of
from fusecli.training.candidates import ModelSpec
from fusecli.training.examples import ChannelStatistics
from fusecli.training.results import ORDER
from fusecli.training.standardise import unit_statistics
from fusecli.training.stored import Member, StoredModel

HEAD_KEY = "fusecli_head"  # in the metadata of weights.safetensors
MODEL_KEY = "fusecli_model"  # in the metadata of the files of the other models
# Of both. 1: every line of the table is its own networks alone; 2: other lines may count in it.
MODEL_VERSION = 2

_LARGEST_WIDTH = 1 << 20
_LARGEST_NUMBER = 1e30  # temperature, centre and spread of labels
_MOST_MEMBERS = 1000
_SIDES = ("text", "image")

Tensors = dict[str, NDArray[np.float32]]


class _WrongError(ValueError):
    """What is wrong with a file, as the end of a sentence."""


class _NewerError(FeatureFileError):
    """A file of a later version."""


def load_run(path: str) -> tuple[dict[str, Any], list[StoredModel]]:
    """The models of a finished run.

    Args:
        path: the run's folder.

    Returns:
        What was given to `RunFolder.save_models` as `head`, and the models.

    Raises:
        UsageError: there is no run, or it is not finished.
        FeatureFileError: a file is damaged.
    """
    weights = _weights_of(path)
    sums = sums_of_run(path)
    head, fusion = _read(weights, HEAD_KEY, _head_and_member, (sums, path, RUN_WEIGHTS))
    C = len(head["names"]) or 1
    members: dict[str, dict[int, Member]] = {"fusion": {0: fusion}}
    constants: dict[str, NDArray[np.float32]] = {}
    about: dict[str, dict[str, Any]] = {"fusion": head}
    for name in _model_files(path, sums):
        file = os.path.join(path, name)
        meta, made = _read(file, MODEL_KEY, _member_or_constant, (sums, path, name))
        name = meta["name"]
        about.setdefault(name, meta)
        if isinstance(made, np.ndarray):
            constants[name] = made
        else:
            members.setdefault(name, {})[meta["number"]] = made
        outputs = made.shape if isinstance(made, np.ndarray) else (made.spec.outputs,)
        if outputs != (C,):
            raise _damaged(file, f"it has {outputs} outputs, and the run has {C}")
    if fusion.spec.outputs != C:
        raise _damaged(weights, f"it has {fusion.spec.outputs} outputs, and {C} names")
    _check_thresholds(path, about, C if head["task"] == "multilabel" else 1)
    models = [
        StoredModel(
            name,
            about[name]["variant"],
            tuple(m for _, m in sorted(members.get(name, {}).items())),
            constants.get(name),
            about[name]["calibration"],
            fusion.spec.tag,
            _blend(path, about, name),
        )
        for name in ORDER
        if name in about
    ]
    return head, models


def _weights_of(path: str) -> str:
    """The weights of a finished run.

    Raises:
        UsageError: there is no run, or it is not finished.
    """
    if not os.path.exists(os.path.join(path, RUN_RECORD)):
        what = f"holds no {RUN_RECORD}" if os.path.isdir(path) else "no such folder"
        raise UsageError(f"{path}: {what}: expected the folder of fusecli train -o")
    weights = os.path.join(path, RUN_WEIGHTS)
    if not os.path.exists(weights):
        raise UsageError(
            f"{path}: the run is not finished: run the same fusecli train command again"
        )
    return weights


def _model_files(path: str, sums: Sums | None) -> list[str]:
    """The files in `models/`, by their paths in the run's folder.

    Raises:
        FeatureFileError: one that the run has written is missing.
    """
    found = models_of(path)
    gone = sorted(name for name in sums or () if name.startswith(MODELS) and name not in found)
    if gone:
        raise _damaged(os.path.join(path, gone[0]), "no such file, and the run has written it")
    return found


def _check_thresholds(path: str, about: Mapping[str, Any], count: int) -> None:
    """Raises:
    FeatureFileError: a model has neither no threshold nor as many as it should.
    """
    for name, meta in about.items():
        if len(meta["calibration"].get("thresholds", ())) not in (0, count):
            raise _damaged(path, f"the thresholds of {name!r} are not those of its outputs")


def _blend(path: str, about: Mapping[str, Any], name: str) -> Blend | None:
    """How much the networks of a line and the lines before it count in it."""
    found = about[name].get("blend")
    if found is None:
        return None
    possible = {name, *parts_of(name, about)}
    shares, factors = (
        (found.get("shares"), found.get("factors")) if isinstance(found, dict) else (None, None)
    )
    if not isinstance(shares, dict) or not isinstance(factors, dict) or not shares:
        raise _damaged(path, f"what counts in {name!r} is {shown(found)}")
    if shares.keys() != factors.keys() or not shares.keys() <= possible:
        raise _damaged(path, f"in {name!r} other models count than can: {shown(sorted(factors))}")
    numbers = [*shares.values(), *factors.values()]
    if any(type(n) not in (int, float) or not 0 < n < _LARGEST_NUMBER for n in numbers):
        raise _damaged(path, f"what counts in {name!r} is not above 0")
    return Blend(shares, factors)


def _damaged(path: str, why: str) -> FeatureFileError:
    return FeatureFileError(
        f"{path}: is damaged, {why}: copy the run's folder again, or train it again"
    )


def _read(
    path: str,
    key: str,
    decode: Callable[[Tensors, dict[str, Any]], Any],
    known: tuple[Sums | None, str, str],
) -> tuple[dict[str, Any], Any]:
    """A file's metadata under a key, and what is made of it and of the tensors.

    Args:
        path: of the file.
        key: in its metadata.
        decode: makes something of tensors and metadata.
        known: what the run says of its files, its folder, and the file's name there.
    """
    with open_features(path) as file:
        try:
            meta = json.loads(file.metadata[key])
        except KeyError:
            raise FeatureFileError(
                f"{path}: says nothing under {key}: expected a file of fusecli train"
            ) from None
        except (ValueError, RecursionError):
            raise _damaged(path, f"its {key} is not JSON") from None
        tensors = {name: stored.read() for name, stored in file.tensors.items()}
        sum_of = sha256_of(file)
        file.refuse_changed()
    try:
        if not isinstance(meta, dict):
            raise _WrongError(f"its {key} is not an object")
        version = _whole({"version": 1} | meta, "version", 1, 1 << 30)
        if version > MODEL_VERSION:
            raise _NewerError(
                f"{path}: is of version {version}, and this fusecli reads up to {MODEL_VERSION}: "
                "install the fusecli that has trained the run"
            )
        for name, array in tensors.items():
            if not np.isfinite(array).all():
                raise _WrongError(f"{shortened(name)} holds NaN or infinity")
        made = decode(tensors, meta)
    except _WrongError as error:
        raise _damaged(path, str(error)) from None
    except _NewerError:
        raise
    except FuseError as error:  # a fusion that cannot be
        raise _damaged(path, str(error)) from None
    check_sum(*known, sum_of)
    return meta, made


# --------------------------------------------------------------------------- single values


def _text(meta: Mapping[str, Any], name: str, among: Sequence[str] = ()) -> str:
    value = meta.get(name)
    if not isinstance(value, str) or (among and value not in among):
        raise _WrongError(f"{name} is {shown(value)}")
    return value


def _whole(meta: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = meta.get(name)
    if type(value) is not int or not least <= value <= most:
        raise _WrongError(f"{name} is {shown(value)}, expected {least:,} to {most:,}")
    return value


def _number(meta: Mapping[str, Any], name: str, usual: float) -> float:
    value = meta.get(name, usual)
    if type(value) not in (int, float) or not abs(value) < _LARGEST_NUMBER:
        raise _WrongError(f"{name} is {shown(value)}")
    return float(value)


def _calibration(meta: Mapping[str, Any]) -> None:
    value = meta.get("calibration")
    if not isinstance(value, dict):
        raise _WrongError("calibration is no object")
    if not _number(value, "temperature", 1.0) > 0:
        raise _WrongError("its temperature is not above 0")
    thresholds = value.get("thresholds", [])
    if not isinstance(thresholds, list):
        raise _WrongError("thresholds is no list")
    for threshold in thresholds:
        _number({"threshold": threshold}, "threshold", 0.0)


# ------------------------------------------------------------------------------- networks


def _spec(meta: Mapping[str, Any]) -> ModelSpec:
    data = meta.get("spec")
    if not isinstance(data, dict):
        raise _WrongError("spec is no object")
    known = {field.name for field in fields(ModelSpec)}
    if data.keys() != known:
        odd = ", ".join(map(shortened, sorted(data.keys() ^ known)[:3]))
        raise _WrongError(f"spec has other fields than this version: {odd}")
    _text(data, "kind", ("fusion", "additive", "concat_mlp"))
    for name in ("outputs", "image_dim", "text_dim", "width"):
        _whole(data, name, 1, _LARGEST_WIDTH)
    for name in ("tag", "linear"):
        if type(data[name]) is not bool:
            raise _WrongError(f"{name} is {shown(data[name])}")
    sides = data["sides"]
    if not isinstance(sides, list) or not sides or any(side not in _SIDES for side in sides):
        raise _WrongError("sides are not text, image or both")
    if (data["kind"] == "fusion") != isinstance(data["fusion"], dict):
        raise _WrongError("fusion does not go with the kind of model")
    return ModelSpec.from_dict(data)


def _statistics(tensors: Tensors, mean: str, std: str, width: int) -> ChannelStatistics:
    for name in (mean, std):
        if name not in tensors or tensors[name].shape != (width,):
            raise _WrongError(f"{name} [{width}] is not there")
    found = ChannelStatistics(tensors.pop(mean), tensors.pop(std))
    with np.errstate(all="ignore"):
        usable = np.isfinite(1 / found.std) & np.isfinite(found.mean / found.std)
    if not (usable & (found.std > 0)).all():
        raise _WrongError(f"{std} holds a spread that is not above 0")
    return found


def _member(
    spec: ModelSpec, arrays: Tensors, statistics: Mapping[str, ChannelStatistics], meta: Any
) -> Member:
    """Raises:
    _WrongError: the parameters are not those of such a network.
    """
    import torch

    if spec.kind == "fusion":
        config = FusionConfig.from_dict(dict(spec.fusion or {}), "spec")
        if (config.text_dim, config.image_dim) != (spec.text_dim, spec.image_dim):
            raise _WrongError("the fusion's widths are not those of the features")
        if "layers" in config.how.fields and config.layers * 10 > len(arrays):
            raise _WrongError(f"it has fewer parameters than {config.layers:,} layers")
    with torch.device("meta"):  # shapes only: a hostile width takes no memory
        model = spec.build(statistics["text"], statistics["image"])
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: array.shape for name, array in arrays.items()}
    if wanted != found:
        name = min(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise _WrongError(
            f"{shortened(name)} is {_sizes(found.get(name))}, expected {_sizes(wanted.get(name))}"
        )
    centre, spread = _number(meta, "centre", 0.0), _number(meta, "spread", 1.0)
    return Member(spec, arrays, **statistics, centre=centre, spread=spread)


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))


def _head_and_member(tensors: Tensors, meta: dict[str, Any]) -> Member:
    names = meta.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _WrongError("names is no list of texts")
    _text(meta, "name", ("fusion",))
    _text(meta, "task")
    _text(meta, "variant")
    _calibration(meta)
    spec = _spec(meta)
    if spec.kind != "fusion":
        raise _WrongError(f"kind is {spec.kind}")
    trained = {
        f"trained_{side}": _statistics(
            tensors, f"head.input.{side}_mean", f"head.input.{side}_std", width
        )
        for side, width in (("text", spec.text_dim), ("image", spec.image_dim))
    }
    own = {"text": unit_statistics(spec.text_dim), "image": unit_statistics(spec.image_dim)}
    arrays = {n if n.startswith("head.") else f"fusion.{n}": a for n, a in tensors.items()}
    return _member(spec, arrays, own | trained, meta)


def _member_or_constant(tensors: Tensors, meta: dict[str, Any]) -> Member | NDArray[np.float32]:
    _text(meta, "name", ORDER)
    _text(meta, "variant")
    _calibration(meta)
    if "constant" in tensors:
        constant = tensors["constant"]
        if constant.ndim != 1 or len(tensors) > 1 or not math.prod(constant.shape):
            raise _WrongError("constant is no vector")
        return constant
    _whole(meta, "number", 0, _MOST_MEMBERS)
    spec = _spec(meta)
    widths = {"text": spec.text_dim, "image": spec.image_dim}
    statistics = {
        f"{kind}{side}": _statistics(
            tensors, f"input.{kind}{side}.mean", f"input.{kind}{side}.std", width
        )
        for side, width in widths.items()
        for kind in ("", "trained_")
    }
    return _member(spec, tensors, statistics, meta)
