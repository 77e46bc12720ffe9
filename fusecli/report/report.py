"""The shape report as data: what went in, what happened to its shape, what came out.

`Report.to_dict` is the JSON that `--report FILE.json` and `--json` give; its keys are stable
and documented in the README. `cli/tables.py` prints the same data as tables.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import asdict, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from fusecli._version import __version__
from fusecli.features.axes import Axes
from fusecli.features.notes import Note as Note
from fusecli.features.tensor import StoredTensor
from fusecli.fusion.base import Plan
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Dtype, Engine
from fusecli.fusion.method import Stage
from fusecli.records import open_record, record
from fusecli.report.parts import (
    AttentionMaskPart,
    AttentionPart,
    InputPart,
    MapsPart,
    MaskPart,
    ModulePart,
    OutputPart,
    PlanPart,
    ProvenancePart,
    WeightsPart,
    plain,
)

if TYPE_CHECKING:
    from fusecli.features.attention_mask import AttentionMask
    from fusecli.features.pair_masks import UsedMask

REPORT_VERSION = 1
_COMMON = ("method", "embed_dim", "num_heads", "image_dim", "text_dim", "context_dim")
# What only some methods read; null in the report of the others.
SWITCHES = tuple(field.name for field in fields(FusionConfig) if field.name not in _COMMON)


@record
class Diagnosis:
    """Something that may be wrong with a result, in plain words.

    Attributes:
        code: a stable short name.
        message: what is the case.
        remedy: what to do about it.
    """

    code: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


@open_record
class Report:
    """Everything a result can be explained and repeated by; each part is plain data."""

    inputs: dict[str, InputPart]
    module: ModulePart
    plan: PlanPart | None
    stages: list[Stage]
    attention: AttentionPart | None
    output: OutputPart
    maps: MapsPart | None
    diagnoses: list[Diagnosis]
    notes: list[str]
    provenance: ProvenancePart
    attention_mask: AttentionMaskPart | None = None
    report_version: int = field(default=REPORT_VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable keys, version first."""
        data = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        data["stages"] = [asdict(stage) for stage in self.stages]
        data["diagnoses"] = [asdict(diagnosis) for diagnosis in self.diagnoses]
        return {"report_version": data.pop("report_version"), **data}

    def to_json(self) -> str:
        """The same as text, ending in a newline; numbers JSON does not have become null."""
        return json.dumps(_jsonable(self.to_dict()), indent=2, allow_nan=False) + "\n"


def describe_input(
    stored: StoredTensor, axes: Axes, sha256: str | None, mask: UsedMask | None
) -> InputPart:
    """The report's entry for one feature file."""
    return InputPart(
        file=stored.file,
        key=stored.key,
        shape=list(stored.shape),
        dtype=stored.dtype,
        axes=axes.letters,
        axes_from=axes.origin,
        sizes=axes.meaning,
        sha256=sha256,
        mask=None if mask is None else describe_mask(mask),
    )


def describe_mask(mask: UsedMask) -> MaskPart:
    """The report's entry for the mask of one side."""
    real = int(mask.rows.sum())
    return MaskPart(
        file=mask.stored.file,
        key=mask.stored.key,
        shape=list(mask.stored.shape),
        dtype=mask.stored.dtype,
        real=real,
        padding=mask.rows.size - real,
        found=mask.found,
    )


def describe_attention_mask(mask: AttentionMask, sha256: str | None) -> AttentionMaskPart:
    """The report's entry for a mask of which text token may attend to which image token."""
    return AttentionMaskPart(
        file=mask.stored.file,
        key=mask.stored.key,
        shape=list(mask.stored.shape),
        dtype=mask.stored.dtype,
        style=mask.style,
        style_assumed=mask.assumed,
        allowed=mask.allowed,
        not_allowed=mask.marks - mask.allowed,
        sha256=sha256,
    )


def describe_plan(plan: Plan | None, image_asks: Plan | None) -> PlanPart | None:
    """The report's entry for the order of products; None for methods without a choice.

    Args:
        plan: of the (first) query side.
        image_asks: of the image, if both sides are query sides.
    """
    if plan is None:
        return None
    return PlanPart(
        scores=plan.scores,
        values=plan.values,
        multiply_adds=plan.multiply_adds,
        plain_multiply_adds=plan.plain,
        why=plan.why,
        image_asks=describe_plan(image_asks, None),
    )


def describe_module(
    config: FusionConfig, weights_file: str | None, sha256: str | None, seed: int | None
) -> ModulePart:
    """The report's entry for the module and where its weights came from."""
    own = config.to_dict()
    origin = weights_file or "none needed"
    return ModulePart(
        method=config.method,
        embed_dim=config.embed_dim,
        num_heads=own.get("num_heads"),
        head_dim=config.head_dim if config.has_heads else None,
        image_dim=config.image_dim,
        text_dim=config.text_dim,
        settings={name: own.get(name) for name in SWITCHES},
        parameters=config.parameter_count(),
        weights=WeightsPart(
            file=weights_file,
            sha256=sha256,
            seed=seed,
            # A file cannot tell that it was trained, only that it was not.
            trained=None if seed is None else False,
            origin=origin if seed is None else f"untrained, seed {seed}",
        ),
    )


def provenance(
    engine: Engine, device: str, dtype: Dtype, threads: int, seed: int | None
) -> ProvenancePart:
    """What a result can be repeated with, besides the inputs and the weights."""
    libraries = {"numpy": np.__version__, "safetensors": safetensors.__version__}
    if engine == "torch":
        libraries["torch"] = str(sys.modules["torch"].__version__)
    return ProvenancePart(
        fusecli=__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        libraries=libraries,
        engine=engine,
        device=device,
        dtype=dtype,
        threads=threads,
        seed=seed,
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
