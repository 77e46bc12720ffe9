"""Sum: each text token and the mean of the image tokens, weighed by alpha."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
from fusecli.fusion.backend.arrays import Array
from fusecli.fusion.base import Computing, Fusion, LoadWeights, Plan
from fusecli.fusion.layers import Layer
from fusecli.fusion.literals import Side
from fusecli.fusion.method import (
    LayerModule,
    Method,
    Recognised,
    Shapes,
    Stage,
    TokenSide,
    Way,
    has_layers,
    projected_widths,
    projections,
)
from fusecli.fusion.methods.pooled import PooledFusion, mean_stage
from fusecli.fusion.settings import FusionSettings, Sizes

if TYPE_CHECKING:
    from torch import Tensor


class Sum(Method):
    """alpha * text + (1 - alpha) * mean of the image, each projected to D or neither."""

    def complete(self, given: Mapping[str, Any], image_dim: int, text_dim: int) -> dict[str, Any]:
        projected = "embed_dim" in given or image_dim != text_dim
        return {"embed_dim": text_dim, "projected": projected, **given}

    def check(self, config: FusionSettings) -> None:
        if not 0 <= config.alpha <= 1:
            raise UsageError(f"--alpha must be from 0 to 1, found {config.alpha:g}")
        if not config.projected and not config.text_dim == config.image_dim == config.embed_dim:
            raise UsageError(
                f"a sum without a projection takes sides of one width, found text "
                f"{config.text_dim} and image {config.image_dim}: use --dim, which projects both"
            )

    def offers(self, way: Way, image_dim: int, text_dim: int) -> bool:
        return bool(way.projected) or image_dim == text_dim  # other widths are projected

    def layers(self, config: FusionSettings) -> list[Layer]:
        return projections(config, config.embed_dim) if config.projected else []

    def training_fields(
        self, given: Mapping[str, Any], width: int, heads: int, text_dim: int
    ) -> dict[str, Any]:
        return {"embed_dim": width, "projected": True}

    def multiply_adds(self, config: FusionSettings, T: int, P: int) -> int:
        mean, D = P * config.image_dim, config.embed_dim
        if config.projected:
            return mean + (T * config.text_dim + config.image_dim) * D
        return mean + T * D

    def stages(
        self,
        N: int,
        query: TokenSide,
        context: TokenSide,
        config: FusionSettings,
        plan: Plan | None,
    ) -> Iterator[Stage]:
        D = config.embed_dim
        yield mean_stage(N, context)
        if config.projected:
            letters, shape = f"N, {query.letter}, D", (N, query.tokens, D)
            yield Stage(f"projected {query.name}", letters, shape, True)
            yield Stage(f"projected mean {context.name}", "N, D", (N, D), True)

    def recognise(self, shapes: Shapes, image_dim: int | None) -> Recognised | None:
        fields = projected_widths(shapes)
        if fields is None or has_layers(shapes, "attention.", "decoder.", "out_proj."):
            return None
        fields["projected"] = True
        return Recognised(fields, ("alpha",), "layers that are not in the file", by_method=True)

    def build(
        self, config: FusionSettings, load: LoadWeights, sizes: Sizes, computing: Computing
    ) -> Fusion:
        return SumFusion(config, load, self.parameters(config), computing)

    def forward(
        self,
        module: LayerModule,
        x: Tensor,
        y: Tensor,
        x_real: Tensor | None,
        y_real: Tensor | None,
        direction: Side,
    ) -> Tensor:
        config, mean = module.config, module.mean(y, y_real)  # [N, 1, .]
        if config.projected:
            x, mean = module.project(x, mean, direction)
        own = config.alpha if direction == "text" else 1 - config.alpha
        return own * x + (1 - own) * mean


class SumFusion(PooledFusion):
    """A fused row is A x + (B m + c): x the query token, m the mean of the context side."""

    def place(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        if not self.config.projected:
            return
        alpha, rest = np.float32(self.config.alpha), np.float32(1 - self.config.alpha)
        text, image = alpha * weights["text_proj.weight"], rest * weights["image_proj.weight"]
        bias = alpha * weights["text_proj.bias"] + rest * weights["image_proj.bias"]
        self.place_both(text, image, bias)

    def combine(self, x: Array, context: Array, n: int) -> Array:
        if self.config.projected:
            return self.project_both(x, context)
        own = self.config.alpha if self.direction == "text" else 1 - self.config.alpha
        return own * x + ((1 - own) * context)[:, None]


METHOD = Sum(
    "sum",
    fields=("projected", "alpha"),
    pools_context=True,
    ways=(Way("mean", "times alpha", projected=False), Way("mean", "projected", projected=True)),
)
