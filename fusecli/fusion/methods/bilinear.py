"""Bilinear: the product of each projected text token and the projected mean of the image tokens.

Low-rank bilinear pooling (MLB, arXiv:1610.04325, equation 8 without the activation):

    fused = Wo ((Wt text + bt) * (Wi mean + bi)) + bo      Wt [R, Dt]   Wi [R, Di]   Wo [D, R]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import Array
from fusecli.fusion.base import Computing, Fusion, LoadWeights, Plan
from fusecli.fusion.layers import Layer, linear
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
from fusecli.fusion.methods.pooled import PooledFusion, mean_stage, times
from fusecli.fusion.settings import FusionSettings, Sizes

if TYPE_CHECKING:
    from torch import Tensor


class Bilinear(Method):
    """`out_proj(text_proj(text) * image_proj(mean of the image))`, of rank R."""

    def defaults(self, config: FusionSettings) -> dict[str, int]:
        return {"rank": config.embed_dim}

    def layers(self, config: FusionSettings) -> list[Layer]:
        R = config.rank
        return [*projections(config, R), linear("out_proj", R, config.embed_dim)]

    def multiply_adds(self, config: FusionSettings, T: int, P: int) -> int:
        Dt, Di, D, R = config.text_dim, config.image_dim, config.embed_dim, config.rank
        return P * Di + (T * Dt + Di) * R + T * R + T * R * D

    def stages(
        self,
        N: int,
        query: TokenSide,
        context: TokenSide,
        config: FusionSettings,
        plan: Plan | None,
    ) -> Iterator[Stage]:
        R, letters, shape = config.rank, f"N, {query.letter}, R", (N, query.tokens, config.rank)
        yield mean_stage(N, context)
        yield Stage(f"projected {query.name}", letters, shape, True)
        yield Stage(f"projected mean {context.name}", "N, R", (N, R), True)
        yield Stage("product", letters, shape, True)

    def recognise(self, shapes: Shapes, image_dim: int | None) -> Recognised | None:
        fields, out = projected_widths(shapes), shapes.get("out_proj.weight", ())
        if fields is None or len(out) != 2 or has_layers(shapes, "attention.", "decoder."):
            return None
        fields |= {"embed_dim": out[0], "rank": out[1]}
        return Recognised(fields, (), "an activation between its layers", by_method=True)

    def build(
        self, config: FusionSettings, load: LoadWeights, sizes: Sizes, computing: Computing
    ) -> Fusion:
        return BilinearFusion(config, load, self.parameters(config), computing)

    def forward(
        self,
        module: LayerModule,
        x: Tensor,
        y: Tensor,
        x_real: Tensor | None,
        y_real: Tensor | None,
        direction: Side,
    ) -> Tensor:
        query, context = module.project(x, module.mean(y, y_real), direction)
        fused: Tensor = module.linear("out_proj")(query * context)  # [N, T, R] to [N, T, D]
        return fused


class BilinearFusion(PooledFusion):
    """The projected mean is formed once for each pair and multiplies all its query tokens."""

    def place(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        other = "image" if self.direction == "text" else "text"
        own = self.load_all(*(weights[f"{self.direction}_proj.{part}"] for part in _PARTS))
        context = self.load_all(*(weights[f"{other}_proj.{part}"] for part in _PARTS))
        out = self.load_all(*(weights[f"out_proj.{part}"] for part in _PARTS))
        self._own, self._context, self._out = own, context, out

    def combine(self, x: Array, context: Array, n: int) -> Array:
        weight, bias = self._own
        rows = times(x, weight) + bias  # [., T, R]
        weight, bias = self._context
        rows = rows * (context @ weight.T + bias)[:, None]  # [n, T, R]
        weight, bias = self._out
        return times(rows, weight) + bias  # [n, T, D]

    def floats_a_row(self) -> int:
        return 3 * self.config.embed_dim + 3 * self.config.rank


_PARTS = ("weight", "bias")

METHOD = Bilinear(
    "bilinear",
    fields=("rank",),
    required=("rank",),
    pools_context=True,
    ways=(Way("mean", "projected"),),
)
