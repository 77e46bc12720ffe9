"""Transformer: `nn.TransformerDecoder` over projected tokens, with self-attention of the text.

It runs as the torch module, chunk by chunk, on any device and in any type that torch has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.device import resolve_device, set_torch_threads
from fusecli.fusion.base import Computing, Fusion, LoadWeights, Plan, WeightsOut, samples_within
from fusecli.fusion.layers import Layer, layer_norm, linear, multihead_attention
from fusecli.fusion.literals import Engine
from fusecli.fusion.method import (
    Method,
    Recognised,
    Shapes,
    Stage,
    TokenSide,
    Way,
    heads_of,
    projected_widths,
    projections,
)
from fusecli.fusion.settings import FusionSettings, Sizes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fusecli.fusion.pair_module import PairFusion


class Transformer(Method):
    """Layers of self-attention, cross-attention to the context side, and feed-forward."""

    def defaults(self, config: FusionSettings) -> dict[str, int]:
        return {"ffn_dim": 4 * config.embed_dim}

    def layers(self, config: FusionSettings) -> list[Layer]:
        D, F = config.embed_dim, config.ffn_dim
        layers = projections(config, D)
        for index in range(config.layers):
            name = f"decoder.layers.{index}"
            layers += [
                multihead_attention(f"{name}.self_attn", D),
                multihead_attention(f"{name}.multihead_attn", D),
                linear(f"{name}.linear1", D, F),
                linear(f"{name}.linear2", F, D),
            ]
            layers += [layer_norm(f"{name}.norm{k}", D) for k in (1, 2, 3)]
        return [*layers, layer_norm("decoder.norm", D)]

    def training_fields(
        self, given: Mapping[str, Any], width: int, heads: int, text_dim: int
    ) -> dict[str, Any]:
        return heads_of(given, width, heads)

    def multiply_adds(self, config: FusionSettings, T: int, P: int) -> int:
        D = config.embed_dim
        self_attention = 4 * T * D * D + 2 * T * T * D
        cross_attention = 2 * T * D * D + 2 * P * D * D + 2 * T * P * D
        layer = self_attention + cross_attention + 2 * T * D * config.ffn_dim
        return T * config.text_dim * D + P * config.image_dim * D + config.layers * layer

    def stages(
        self,
        N: int,
        query: TokenSide,
        context: TokenSide,
        config: FusionSettings,
        plan: Plan | None,
    ) -> Iterator[Stage]:
        D, H, Q, queries = config.embed_dim, config.num_heads, query.letter, query.tokens
        each = f", each of {config.layers} layers" if config.layers > 1 else ""
        for side in sorted((query, context), key=lambda side: side.name, reverse=True):
            letters, shape = f"N, {side.letter}, D", (N, side.tokens, D)
            yield Stage(f"projected {side.name}", letters, shape, True)
        for name, other in (("self", query), ("cross", context)):
            yield Stage(
                f"{name}-attention scores{each}",
                f"N, H, {Q}, {other.letter}",
                (N, H, queries, other.tokens),
                True,
            )
        yield Stage(f"feed-forward{each}", f"N, {Q}, F", (N, queries, config.ffn_dim), True)

    def recognise(self, shapes: Shapes, image_dim: int | None) -> Recognised | None:
        first = shapes.get("decoder.layers.0.linear1.weight", ())
        fields = projected_widths(shapes)
        if fields is None or len(first) != 2:
            return None
        parts = [name.split(".") for name in shapes if name.startswith("decoder.layers.")]
        layers = {part[2] for part in parts if len(part) > 3}
        fields |= {"layers": len(layers), "ffn_dim": first[0]}
        question = "norm_first=False (norm_first=True is assumed) or an activation other than ReLU"
        return Recognised(fields, (), question, by_method=True)

    def build(
        self, config: FusionSettings, load: LoadWeights, sizes: Sizes, computing: Computing
    ) -> Fusion:
        weights = load(dict.fromkeys(self.parameters(config), slice(None)))
        return DecoderFusion(config, weights, computing)

    def build_module(self, config: FusionSettings) -> PairFusion:
        from fusecli.fusion.torch_modules import TransformerFusion

        return TransformerFusion(config)


class DecoderFusion:
    """A `TransformerFusion` in inference.

    Several threads may call `fuse`; they take turns, since torch uses all cores for one call.

    Args:
        config: of method transformer.
        weights: all its parameters.
        computing: where and in what; device auto is the best device there is.

    Raises:
        DeviceError: the device is not on this machine.
    """

    plan: Plan | None = None
    engine: Engine = "torch"
    workers = 2  # one computes while another reads
    row_stable = False
    gives_weights = True

    def __init__(
        self,
        config: FusionSettings,
        weights: Mapping[str, NDArray[np.float32]],
        computing: Computing,
    ) -> None:
        import torch

        from fusecli.fusion.torch_modules import TransformerFusion

        self.config, self.direction = config, computing.direction
        self.device, self.threads = resolve_device(computing.device), torch.get_num_threads()
        self._dtype: torch.dtype = getattr(torch, computing.dtype)
        with torch.device("meta"):  # do not draw initial weights, which are replaced below
            module = TransformerFusion(config)
        state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        module.load_state_dict(state, assign=True)
        self._module = module.to(self.device, self._dtype).eval()
        self._layer = module.decoder.layers[computing.layer]
        self._turn = Lock()

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        return nullcontext()

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        c = self.config
        T, P = (sizes.T, sizes.P) if self.direction == "text" else (sizes.P, sizes.T)
        floats = 2 * (sizes.T * sizes.Dt + sizes.P * sizes.Di) + 3 * P * c.embed_dim
        floats += T * (8 * c.embed_dim + 2 * c.ffn_dim) + 2 * c.num_heads * T * (T + P)
        return samples_within(4 * floats, min(T, P), sizes.N, max_memory, self.workers)

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: WeightsOut | None = None,
        attention_mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        import torch

        n = max(len(image), len(text))

        def placed(array: NDArray[np.float32]) -> torch.Tensor:
            whole = np.broadcast_to(array, (n, *array.shape[1:]))
            if not whole.flags.writeable:  # torch warns, though nothing here writes to it
                whole = whole.copy()
            return torch.from_numpy(whole).to(self.device, self._dtype)

        def mask_of(mask: NDArray[np.bool_] | None) -> torch.Tensor | None:
            if mask is None or mask.all():
                return None
            shape = (n, mask.shape[1]) if mask is not attention_mask else (n, *mask.shape[-2:])
            return torch.from_numpy(np.broadcast_to(mask, shape).copy()).to(self.device)

        with self._turn, torch.inference_mode(), self._weights_to(weights_out):
            set_torch_threads(self.threads)
            fused = self._module(
                placed(image),
                placed(text),
                image_mask=mask_of(image_mask),
                text_mask=mask_of(text_mask),
                allow_empty_image=True,
                direction=self.direction,
                attention_mask=mask_of(attention_mask),
            )
            result: NDArray[np.float32] = fused.float().cpu().numpy()
        return result

    @contextmanager
    def _weights_to(self, weights_out: WeightsOut | None) -> Iterator[None]:
        """Inside the block, the cross-attention of the chosen layer also hands out its weights.

        They are computed a second time: the kernel that gives the result does not form them,
        and another one would change the result's last bits.
        """
        if weights_out is None:
            yield
            return

        def hand_out(
            attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            told = {**kwargs, "need_weights": True, "average_attn_weights": False}
            _, weights = attention.forward(*args, **told)  # [n, H, T, P]
            assert weights is not None
            weights_out.append(weights.float().cpu().numpy())

        hook = self._layer.multihead_attn.register_forward_pre_hook(hand_out, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


METHOD = Transformer(
    "transformer",
    fields=("num_heads", "layers", "ffn_dim"),
    required=("num_heads",),
    engines=("torch",),
    gives_weights=True,
    ways=(Way("weighed", "projected"),),
)
