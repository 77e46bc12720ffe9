"""`run.json`: what a run computes and how its results are laid out, decoded by type.

The number `format` decides whether a folder can be gone on with; fusecli's version only informs.
What an older record does not say has the value that it had then: the default.
"""

from __future__ import annotations

import json
import types
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fusecli._version import __version__
from fusecli.batch.store.journal import FORMAT, fingerprint
from fusecli.errors import FuseError, OutputError, shortened
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.config import FusionConfig, option_of
from fusecli.fusion.literals import Direction, Dtype, Engine, OutDtype, Pool

RECORD = "run.json"
LARGEST_RECORD = 1 << 20  # bytes
_LARGEST_NUMBER = 1 << 48
_NOT_THE_RUN = ("format", "fusecli", "chosen_for")  # see `spec_of`


_T = TypeVar("_T")


class DamagedError(ValueError):
    """A record is not what it should be."""


@dataclass(frozen=True)
class WeightsRecord:
    """SHA-256 of the weights file, or the seed of initial weights; the prefix that was given."""

    sha256: str | None = None
    seed: int | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class ResultRecord:
    """What is written for a pair."""

    direction: Direction
    pool: Pool | None
    dtype: OutDtype


@dataclass(frozen=True)
class ComputingRecord:
    """Where and in what is computed."""

    device: str
    dtype: Dtype
    engine: Engine
    threads: int | None = None


@dataclass(frozen=True)
class SizesRecord:
    """Number of pairs, text tokens and image tokens that the order of products is chosen for."""

    N: int
    T: int
    P: int


@dataclass(frozen=True)
class LayoutRecord:
    """Files of single pairs in one format, or packs of some size."""

    pack: bool
    format: str | None = None
    shard_size: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        module: the fusion.
        weights, result, reading, computing, chosen_for, layout: as the classes say.
        version: of the fusecli that began the run.
        format: of this record and of the journals.
    """

    module: FusionConfig
    weights: WeightsRecord
    result: ResultRecord
    reading: ReadOptions
    computing: ComputingRecord
    chosen_for: SizesRecord
    layout: LayoutRecord
    version: str = __version__
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """As plain data, in the order in which it is written."""
        layout = {name: value for name, value in asdict(self.layout).items() if value is not None}
        weights = asdict(self.weights)
        if self.weights.prefix is None:  # as most records, and those of 0.1.0, are
            del weights["prefix"]
        return {
            "format": self.format,
            "fusecli": self.version,
            "module": self.module.to_dict(),
            "weights": weights,
            "result": asdict(self.result),
            "reading": asdict(self.reading),
            "computing": asdict(self.computing),
            "chosen_for": asdict(self.chosen_for),
            "layout": layout,
        }

    def differences(self, other: RunRecord) -> list[str]:
        """What another record says differently, each as `OPTION: A there, B now`."""
        before, now = dict(_flat(self.to_dict())), dict(_flat(other.to_dict()))
        return [
            f"{_option(name)}: {_shown(before.get(name))} there, {_shown(now.get(name))} now"
            for name in {**before, **now}
            if name not in ("format", "fusecli") and before.get(name) != now.get(name)
        ]


def spec_of(content: bytes) -> int:
    """64 bits that tell records apart, whatever wrote them and however they are laid out.

    What stands in the file counts, and not what a later version adds to it. What the first shard
    found, how many pairs there are and how many threads its machine has, makes no other run: shards
    that were computed on several machines can be put together.

    Args:
        content: of the file. What is no object of JSON gives 0.
    """
    try:
        data = json.loads(content)
        if type(data) is not dict or not data:
            return 0
        kept = {name: value for name, value in data.items() if name not in _NOT_THE_RUN}
        if type(computing := kept.get("computing")) is dict:
            kept["computing"] = {k: v for k, v in computing.items() if k != "threads"}
        return fingerprint(json.dumps(kept, sort_keys=True)) or 1
    except (ValueError, RecursionError):
        return 0


def decode_record(content: bytes, path: str) -> RunRecord:
    """A record from the bytes of its file.

    Raises:
        OutputError: it is damaged, or of a newer format.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is no JSON: {shortened(str(error), 200)}") from None
    if type(data) is not dict:
        raise OutputError(f"{path}: is no record of a run: say another -o")
    if "identity" in data and "module" not in data:
        raise OutputError(f"{path}: is of a run of fusecli train: say another -o")
    number = data.get("format", 1)
    if type(number) is int and number > FORMAT:
        raise OutputError(
            f"{path}: has format {shortened(str(number))}, written by fusecli "
            f"{shortened(str(data.get('fusecli')))}; this is fusecli {__version__}, which reads "
            f"formats up to {FORMAT}: use the newer fusecli, or say another -o"
        )
    try:
        if type(number) is not int or number < 1:
            raise DamagedError(f"format is {shortened(repr(number))}")
        return RunRecord(
            FusionConfig.from_dict(_part(data, "module"), path),
            decode(WeightsRecord, _part(data, "weights"), "weights"),
            decode(ResultRecord, _part(data, "result"), "result"),
            decode(ReadOptions, _part(data, "reading"), "reading"),
            decode(ComputingRecord, _part(data, "computing"), "computing"),
            decode(SizesRecord, _part(data, "chosen_for"), "chosen_for"),
            decode(LayoutRecord, _part(data, "layout"), "layout"),
            shortened(str(data.get("fusecli"))),
            number,
        )
    except (DamagedError, FuseError, RecursionError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: str, why: str) -> OutputError:
    why = why.removeprefix(f"{path}: ")
    return OutputError(f"{path}: is damaged ({why}): say another -o, or --force to begin anew")


def _part(data: dict[str, Any], name: str) -> dict[str, Any]:
    part = data.get(name)
    if type(part) is not dict:
        raise DamagedError(f"{name} is missing or no object")
    return part


def decode(kind: type[_T], data: dict[str, Any], where: str) -> _T:
    """A dataclass of plain values from an object of JSON; numbers are bounded and not negative.

    Raises:
        DamagedError: an unknown or missing name, or a value of another type.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in data:
        if name not in hints:
            raise DamagedError(f"{where}.{shortened(name)} is not known")
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in data:
            if field.default is MISSING and field.default_factory is MISSING:
                raise DamagedError(f"{where}.{field.name} is missing")
            continue
        value = data[field.name]
        if not _fits(value, hints[field.name]):
            raise DamagedError(f"{where}.{field.name} is {shortened(repr(value))}")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return type(value) is str and value in get_args(hint)
    if origin is tuple:
        return type(value) is list and all(_fits(part, get_args(hint)[0]) for part in value)
    if hint is int:
        return type(value) is int and 0 <= value <= _LARGEST_NUMBER
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


_OPTIONS = {
    # The features and the weights decide these: no option does.
    "module.image_dim": "width of the image features",
    "module.text_dim": "width of the text features",
    "module.context_dim": "width of the image in the weights",
    "weights.sha256": "--weights (sha256 of the file)",
    "weights.prefix": "--weights-prefix",
    "result.dtype": "--out-dtype",
    "computing.threads": "threads of a product",
    "layout.shard_size": "--shard-size",
    "chosen_for.N": "number of pairs",
    "chosen_for.T": "text tokens of a pair",
    "chosen_for.P": "image tokens of a pair",
}


def _option(name: str) -> str:
    """The option of `batch` that sets a value of the record, or what it is, for messages."""
    return _OPTIONS.get(name) or option_of(name.partition(".")[2])


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:12]}..." if isinstance(value, str) and len(text) > 40 else text
