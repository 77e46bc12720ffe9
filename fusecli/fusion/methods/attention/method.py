"""Cross-attention as a method: its options and their checks, its parameters and its cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusecli.errors import UsageError
from fusecli.fusion.base import Computing, Fusion, LoadWeights, Plan
from fusecli.fusion.layers import Layer, layer_norm, linear, multihead_attention, zero
from fusecli.fusion.literals import Side
from fusecli.fusion.method import (
    Method,
    Recognised,
    Shapes,
    Stage,
    TokenSide,
    Way,
    heads_of,
    projected_widths,
)
from fusecli.fusion.methods.attention.plan import choose_plan
from fusecli.fusion.settings import FusionSettings, Sizes

if TYPE_CHECKING:
    from fusecli.fusion.pair_module import PairFusion


class Attention(Method):
    """`ImageTextFusion`: the query side's tokens attend to the context side's tokens."""

    def check(self, config: FusionSettings) -> None:
        if not config.gate:
            return
        for name, what in (("residual", "adds the projected text"), ("norm", "changes the text")):
            if getattr(config, name):
                raise UsageError(
                    f"--gate keeps the text and --{name} {what}: leave one of them out"
                )
        text, image = config.text_dim, config.image_dim
        if config.embed_dim not in (text, image):
            other = f", or --direction image --dim {image}" if image != text else ""
            raise UsageError(
                f"--gate adds attention to the query side, and text {text} and image {image} are "
                f"not {config.embed_dim} wide: use --dim {text}{other}"
            )

    def check_sides(
        self, config: FusionSettings, sides: Sequence[Side], weights: str | None
    ) -> None:
        if config.context_dim and "image" in sides:
            raise UsageError(
                f"--direction image: {weights or 'the module'} projects the image to "
                f"{config.context_dim}, and a query is {config.embed_dim} wide: only --direction "
                "text is possible"
            )
        if not config.gate:
            return
        if len(sides) > 1 and config.image_dim != config.text_dim:
            # Weights fit one of the sides; without weights either is possible.
            fit = [s for s in sides if weights is None or config.side_dim(s) == config.embed_dim]
            raise UsageError(
                f"--gate --direction both needs image and text of one width ({config.image_dim} "
                f"and {config.text_dim}): use --direction {' or '.join(fit)}"
            )
        for side in sides:
            width = config.side_dim(side)
            if width == config.embed_dim:
                continue
            other = "image" if side == "text" else "text"
            remedy = f"use --dim {width}"
            if weights is not None:
                remedy = f"use --direction {other}, or give weights made with --dim {width}"
            raise UsageError(
                f"--gate adds attention to the {side} itself, which is {width} wide, and "
                f"{weights or 'the module'} is {config.embed_dim}: {remedy}"
            )

    def layers(self, config: FusionSettings) -> list[Layer]:
        D = config.embed_dim
        layers = [
            linear("text_proj", config.text_dim, D),
            linear("image_proj", config.image_dim, config.context_dim or D),
            multihead_attention("attention", D, config.context_dim),
        ]
        if config.norm:
            layers.append(layer_norm("norm", D))
        if config.gate:
            layers.append(zero("gate"))
        return layers

    def training_fields(
        self, given: Mapping[str, Any], width: int, heads: int, text_dim: int
    ) -> dict[str, Any]:
        if given.get("gate"):
            return {**heads_of(given, width, heads), "embed_dim": text_dim}
        return {**heads_of(given, width, heads), "residual": True, "norm": True}

    def unprojected(self, config: FusionSettings) -> tuple[Side, ...]:
        return ("text",) if config.gate else ()

    def multiply_adds(self, config: FusionSettings, T: int, P: int) -> int:
        plan = choose_plan(config.sizes(1, T, P), prepared=True)
        return plan.multiply_adds + T * config.embed_dim * config.gate

    def stages(
        self,
        N: int,
        query: TokenSide,
        context: TokenSide,
        config: FusionSettings,
        plan: Plan | None,
    ) -> Iterable[Stage]:
        from fusecli.fusion.methods.attention.stages import attention_stages

        assert plan is not None
        return attention_stages(N, query, context, config, plan)

    def recognise(self, shapes: Shapes, image_dim: int | None) -> Recognised | None:
        if not any(name.startswith("attention.") for name in shapes):
            return None
        fields = projected_widths(shapes)
        if fields is None:
            return None
        fields |= {"norm": "norm.weight" in shapes, "gate": "gate" in shapes}
        key, width = shapes.get("attention.k_proj_weight", ()), fields["embed_dim"]
        if len(key) == 2 and key[1] != width:
            fields["context_dim"] = key[1]
        question = "a norm without parameters in front of attention (which fusecli does not have)"
        return Recognised(fields, ("residual", "null_token"), question)

    def build(
        self, config: FusionSettings, load: LoadWeights, sizes: Sizes, computing: Computing
    ) -> Fusion:
        from fusecli.fusion.methods.attention.fusion import build_attention

        return build_attention(config, self.parameters(config), load, sizes, computing)

    def build_module(self, config: FusionSettings) -> PairFusion:
        from fusecli.fusion.torch_modules import ImageTextFusion

        return ImageTextFusion.from_config(config)


METHOD = Attention(
    "attention",
    fields=("num_heads", "residual", "norm", "null_token", "gate", "context_dim"),
    required=("num_heads",),
    gives_weights=True,
    ways=(
        Way("weighed", "not kept"),
        Way("weighed", "projected", ("residual",)),
        Way("weighed", "unchanged", ("gate",)),
    ),
)
