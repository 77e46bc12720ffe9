"""Checks of the installed tool on this machine: does it compute what it should, everywhere?

Each check runs the same arithmetic as `fusecli fuse` on small random shapes, with random
biases, in every order of products, on numpy and on every device torch has, and compares with
the plain torch module in float64 or with itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
from fusecli.fusion.backend.arrays import ArrayBackend, NumpyArrays, TorchArrays
from fusecli.fusion.backend.device import devices
from fusecli.fusion.base import Computing, Plan
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import SIDES, Engine, Side
from fusecli.fusion.methods import all_methods
from fusecli.fusion.methods.attention.operands import prepare
from fusecli.fusion.methods.attention.plan import all_plans
from fusecli.fusion.methods.attention.products import attend
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.settings import Sizes

TOLERANCE = 1e-5  # of the output's scale, float32


@dataclass(frozen=True)
class CheckResult:
    """How one check went on one engine.

    Attributes:
        check: what was checked.
        where: engine and device.
        worst: the largest deviation seen, as a share of the output's scale.
        passed: it stayed within the tolerance.
    """

    check: str
    where: str
    worst: float
    passed: bool


@dataclass
class _Case:
    """Random inputs and weights of one shape."""

    config: FusionConfig
    weights: dict[str, NDArray[np.float32]]
    image: NDArray[np.float32]
    text: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def sizes(self) -> Sizes:
        (n, P, _), T = self.image.shape, self.text.shape[1]
        return self.config.sizes(n, T, P)

    def run(
        self,
        arrays: ArrayBackend,
        plan: Plan,
        image: NDArray[np.float32] | None = None,
        masked: bool = True,
        weights_out: list[Any] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        operands = prepare(self.weights, self.config, plan, arrays)
        image = self.image if image is None else image
        mask = self.mask if mask is None else mask
        image = np.where(mask[..., None], image, np.float32(0)) if masked else image
        out = attend(
            operands,
            arrays.load(image),
            arrays.load(self.text),
            arrays,
            arrays.load(mask) if masked else None,
            weights_out,
        )
        return arrays.unload(out).copy()


def run_selftest(tell: Callable[[CheckResult], None] = lambda result: None) -> list[CheckResult]:
    """Run all checks; imports torch.

    Args:
        tell: receives each result as it is known.

    Returns:
        One result per check and engine.
    """
    backends: list[tuple[str, ArrayBackend]] = [("numpy", NumpyArrays())]
    backends += [(f"torch {name}", TorchArrays(name, "float32")) for name in devices()]
    results = []
    for where, arrays in backends:
        for name, worst in chain(_attention_checks(arrays), _method_checks(where)):
            # NaN compares as false: it fails.
            result = CheckResult(name, where, worst, worst <= TOLERANCE)
            tell(result)
            results.append(result)
    return results


def _attention_checks(arrays: ArrayBackend) -> Iterator[tuple[str, float]]:
    """Each check's name and worst deviation, over all cases in all orders of products."""
    for name, check in _CHECKS.items():
        worst = 0.0
        for case in _cases():
            for plan in all_plans(case.sizes()):
                worst = _worse(worst, check(case, arrays, plan))
        yield name, worst


def _method_checks(where: str) -> Iterator[tuple[str, float]]:
    """What `fuse` runs, method by method and in both directions, against the torch modules."""
    device = where.partition(" ")[2]
    engine: Engine = "torch" if device else "numpy"
    for name, config in _configs().items():
        if engine not in config.how.engines:
            continue
        worst = 0.0
        for direction in _directions(config):
            worst = _worse(worst, _from_module(config, direction, engine, device or "cpu"))
        both = "in both directions" if len(_directions(config)) > 1 else "direction text"
        yield f"{name} is what its module gives, {both}", worst


def _worse(worst: float, found: float) -> float:
    return found if math.isnan(found) else max(worst, found)


_METHODS = {
    "gated attention": FusionConfig(24, 3, gate=True),
    "concat": FusionConfig(24, 8, 20, 16, method="concat", projected=True),
    "sum": FusionConfig(24, 8, 20, 16, method="sum", projected=True, alpha=0.3),
    "bilinear": FusionConfig(24, 8, 20, 16, method="bilinear", rank=10),
    "transformer": FusionConfig(24, 3, 20, 16, method="transformer"),
}


def _configs() -> dict[str, FusionConfig]:
    """A fusion of every method; of a method without a case of its own, one without options."""
    others = {config.method for config in _METHODS.values()}
    plain = [method.name for method in all_methods() if method.name not in others]
    return _METHODS | {name: ModuleOptions(method=name).config(20, 24) for name in plain}


def _directions(config: FusionConfig) -> list[Side]:
    """The sides whose tokens can be the query side."""
    possible: list[Side] = []
    for side in SIDES:
        with suppress(UsageError):
            config.check_direction(side)
            possible.append(side)
    return possible


def _from_module(config: FusionConfig, direction: Side, engine: Engine, device: str) -> float:
    import torch

    from fusecli.fusion.build import build_fusion
    from fusecli.fusion.torch_modules import build_module

    rng = np.random.default_rng(0)
    n, P, T = 3, 5, 4
    weights = _weights(config, rng)
    image = rng.standard_normal((n, P, config.image_dim), np.float32)
    text = rng.standard_normal((n, T, config.text_dim), np.float32)
    masks = rng.random((n, P)) < 0.6, rng.random((n, T)) < 0.6
    for mask in masks:
        mask[:, 0] = True
    module = build_module(config).double().eval()
    module.load_state_dict({name: torch.from_numpy(a).double() for name, a in weights.items()})
    with torch.inference_mode():
        expected = module(
            torch.from_numpy(image).double(),
            torch.from_numpy(text).double(),
            image_mask=torch.from_numpy(masks[0]),
            text_mask=torch.from_numpy(masks[1]),
            direction=direction,
        ).numpy()
    fusion = build_fusion(
        config,
        lambda rows: {name: weights[name][part] for name, part in rows.items()},
        config.sizes(n, T, P),
        Computing(direction, device, engine=engine),
    )
    image, text = (
        np.where(mask[..., None], tokens, np.float32(0))
        for tokens, mask in zip((image, text), masks, strict=True)
    )
    return _apart(fusion.fuse(image, text, *masks), expected)


def _weights(config: FusionConfig, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Scaled like trained weights, so that attention is far from uniform; biases too."""
    return {
        name: (rng.standard_normal(shape) * (0.4 if len(shape) > 1 else 0.2)).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }


def _cases() -> Iterator[_Case]:
    rng = np.random.default_rng(0)
    for P, switches in (
        (5, {}),
        (1, {}),
        (1, {"null_token": True}),
        (3, {"residual": True, "norm": True}),
        (2, {"null_token": True, "residual": True}),
    ):
        config = FusionConfig(24, 3, 20, 16, **switches)  # type: ignore[arg-type]
        weights = _weights(config, rng)
        n, T = 3, 4
        mask = rng.random((n, P)) < 0.6
        mask[:, 0] = True
        yield _Case(
            config,
            weights,
            rng.standard_normal((n, P, 20), np.float32),
            rng.standard_normal((n, T, 16), np.float32),
            mask,
        )


def _parity(case: _Case, arrays: ArrayBackend, plan: Plan) -> float:
    import torch

    from fusecli.fusion.torch_modules import ImageTextFusion

    module = ImageTextFusion.from_config(case.config).double()
    state = {name: torch.from_numpy(array).double() for name, array in case.weights.items()}
    module.load_state_dict(state)
    with torch.inference_mode():
        expected = module(
            torch.from_numpy(case.image).double(),
            torch.from_numpy(case.text).double(),
            image_mask=torch.from_numpy(case.mask),
        ).numpy()
    return _apart(case.run(arrays, plan), expected)


def _independence(case: _Case, arrays: ArrayBackend, plan: Plan) -> float:
    changed = case.image.copy()
    changed[1] += 1.0
    others = [0, 2]
    return _apart(case.run(arrays, plan, changed)[others], case.run(arrays, plan)[others])


def _masked_is_cropped(case: _Case, arrays: ArrayBackend, plan: Plan) -> float:
    masked, worst = case.run(arrays, plan), 0.0
    for sample, real in enumerate(case.mask):
        alone = replace(
            case,
            image=case.image[sample : sample + 1, real],
            text=case.text[sample : sample + 1],
            mask=case.mask[sample : sample + 1, real],
        )
        # Cropping to one token changes which orders there are.
        same = plan if real.sum() > 1 or case.config.null_token else None
        cropped_plan = same or next(iter(all_plans(alone.sizes())))
        cropped = alone.run(arrays, cropped_plan, masked=False)
        worst = max(worst, _apart(masked[sample : sample + 1], cropped))
    return worst


def _token_order(case: _Case, arrays: ArrayBackend, plan: Plan) -> float:
    turned = case.run(arrays, plan, case.image[:, ::-1].copy(), mask=case.mask[:, ::-1].copy())
    return _apart(case.run(arrays, plan), turned)


def _weights_sum(case: _Case, arrays: ArrayBackend, plan: Plan) -> float:
    if case.config.null_token:
        return 0.0  # a share of each row goes to the null token
    weights: list[Any] = []
    case.run(arrays, plan, weights_out=weights)
    sums = [arrays.unload(part).sum(axis=-1) for part in weights]
    return float(np.abs(np.concatenate(sums) - 1).max())


def _apart(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


_CHECKS: dict[str, Callable[[_Case, ArrayBackend, Plan], float]] = {
    "parity with the plain module": _parity,
    "samples do not influence each other": _independence,
    "masked equals cropped": _masked_is_cropped,
    "order of image tokens does not matter": _token_order,
    "attention weights sum to 1": _weights_sum,
}
