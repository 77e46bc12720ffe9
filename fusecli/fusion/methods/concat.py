"""Concat: each text token beside the mean of the image tokens, projected to D or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError
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
)
from fusecli.fusion.methods.pooled import PooledFusion, mean_stage
from fusecli.fusion.settings import FusionSettings, Sizes

if TYPE_CHECKING:
    from torch import Tensor


class Concat(Method):
    """[text ; mean of the image], `Dt + Di` wide, or `W [text ; mean] + b`, D wide."""

    def complete(self, given: Mapping[str, Any], image_dim: int, text_dim: int) -> dict[str, Any]:
        width = {"embed_dim": text_dim + image_dim, "projected": "embed_dim" in given}
        return {**width, **given}

    def check(self, config: FusionSettings) -> None:
        text, image = config.text_dim, config.image_dim
        if not config.projected and config.embed_dim != text + image:
            raise UsageError(
                f"text {text} and image {image} wide, concatenated, are {text + image} wide, "
                f"not {config.embed_dim} without a projection"
            )

    def layers(self, config: FusionSettings) -> list[Layer]:
        if not config.projected:
            return []
        return [linear("projection", config.text_dim + config.image_dim, config.embed_dim)]

    def training_fields(
        self, given: Mapping[str, Any], width: int, heads: int, text_dim: int
    ) -> dict[str, Any]:
        return {"embed_dim": width, "projected": True}

    def input_layers(self, config: FusionSettings) -> dict[str, tuple[Side, ...]]:
        return {"projection": ("text", "image")} if config.projected else {}

    def multiply_adds(self, config: FusionSettings, T: int, P: int) -> int:
        mean = P * config.image_dim
        if not config.projected:
            return mean
        return mean + (T * config.text_dim + config.image_dim) * config.embed_dim

    def stages(
        self,
        N: int,
        query: TokenSide,
        context: TokenSide,
        config: FusionSettings,
        plan: Plan | None,
    ) -> Iterator[Stage]:
        yield mean_stage(N, context)
        if config.projected:
            both = query.width + context.width
            # The two halves of the projection are applied each to its own side.
            letters = f"N, {query.letter}, Dt+Di"
            yield Stage("text and image", letters, (N, query.tokens, both), False)

    def recognise(self, shapes: Shapes, image_dim: int | None) -> Recognised | None:
        both = shapes.get("projection.weight", ())
        if len(both) != 2 or image_dim is None or not 0 < image_dim < both[1]:
            return None
        widths = {"image_dim": image_dim, "text_dim": both[1] - image_dim}
        fields = {"embed_dim": both[0], **widths, "projected": True}
        question = "the image in front of the text (the text is assumed to be in front)"
        return Recognised(fields, (), question, by_method=True)

    def build(
        self, config: FusionSettings, load: LoadWeights, sizes: Sizes, computing: Computing
    ) -> Fusion:
        return ConcatFusion(config, load, self.parameters(config), computing)

    def forward(
        self,
        module: LayerModule,
        x: Tensor,
        y: Tensor,
        x_real: Tensor | None,
        y_real: Tensor | None,
        direction: Side,
    ) -> Tensor:
        import torch

        mean = module.mean(y, y_real).expand(-1, x.shape[1], -1)  # [N, T, .]
        # With direction image, text and image keep their columns of the projection.
        both = torch.cat((x, mean) if direction == "text" else (mean, x), dim=-1)
        fused: Tensor = module.linear("projection")(both) if module.config.projected else both
        return fused


class ConcatFusion(PooledFusion):
    """A projection W = [Wt Wi] of [text ; mean] is Wt text + (Wi mean + b), the bracket once."""

    def place(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        if not self.config.projected:
            return
        text, image = np.split(weights["projection.weight"], [self.config.text_dim], axis=1)
        self.place_both(text, image, weights["projection.bias"])

    def combine(self, x: Array, context: Array, n: int) -> Array:
        config = self.config
        if config.projected:
            return self.project_both(x, context)
        made = self.arrays.empty(n, x.shape[1], config.embed_dim)
        query = self.direction == "text"
        left, right = (x, context[:, None]) if query else (context[:, None], x)
        made[..., : config.text_dim] = left
        made[..., config.text_dim :] = right
        return made


METHOD = Concat(
    "concat",
    fields=("projected",),
    pools_context=True,
    ways=(Way("mean", "unchanged", projected=False), Way("mean", "projected", projected=True)),
)
