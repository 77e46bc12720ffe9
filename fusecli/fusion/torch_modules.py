"""Attention and the transformer as torch modules: plain, readable, trainable.

The other methods are `LayeredFusion`s (`pair_module.py`). The letters are in `features/axes.py`.

The arithmetic that `fusecli fuse` runs is in `methods/`; the tests hold it to these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Side
from fusecli.fusion.pair_module import LayeredFusion, PairFusion
from fusecli.fusion.settings import FusionSettings


class _Projecting(PairFusion):
    """With a linear layer in front of each side; each side keeps its own in both directions."""

    text_proj: nn.Linear
    image_proj: nn.Linear

    def project(self, x: Tensor, y: Tensor, direction: Side) -> tuple[Tensor, Tensor]:
        if direction == "text":
            return self.text_proj(x), self.image_proj(y)
        return self.image_proj(x), self.text_proj(y)


class ImageTextFusion(_Projecting):
    """Fuse image features into text features by cross-attention: text is the query side.

    A drop-in for the published `ImageTextFusion(feature_dim, num_heads)`: the same parameter
    names, the same initial weights for the same `torch.manual_seed`, the same numbers.

    With one image token every row of the result is the same and holds nothing of the text,
    because a softmax over one score is 1. Use `residual`, `null_token` or patch features then.

    Args:
        feature_dim: D, the width of the module.
        num_heads: H; divides D.
        image_dim: Di, where image features are not D wide.
        text_dim: Dt, where text features are not D wide.
        residual: add the projected text to the result.
        norm: LayerNorm over the result, after the residual.
        null_token: one extra all-zero key and value (PyTorch's `add_zero_attn`), so that even
            a single image token is weighed, per text token.
        gate: add tanh(gate) times the result of attention to the text itself, which must be D
            wide (Flamingo, arXiv:2204.14198, figure 4); `gate` starts at 0, so that the
            untrained module returns the text unchanged.
        context_dim: the width to which the image is projected, where it is not D (`kdim` and
            `vdim` of torch's attention); the image cannot be the query side then.

    Raises:
        UsageError: a size is not positive, H does not divide D, or switches contradict.
    """

    def __init__(
        self,
        feature_dim: int,
        num_heads: int = 8,
        *,
        image_dim: int | None = None,
        text_dim: int | None = None,
        residual: bool = False,
        norm: bool = False,
        null_token: bool = False,
        gate: bool = False,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.config = FusionConfig(
            feature_dim,
            num_heads,
            image_dim or 0,
            text_dim or 0,
            residual,
            norm,
            null_token,
            gate=gate,
            context_dim=context_dim or 0,
        )
        # This order of creation is the published one: it decides what a seed gives.
        self.text_proj = nn.Linear(self.config.text_dim, feature_dim)
        self.image_proj = nn.Linear(self.config.image_dim, context_dim or feature_dim)
        self.attention = nn.MultiheadAttention(
            feature_dim,
            num_heads,
            add_zero_attn=null_token,
            batch_first=True,
            kdim=context_dim,
            vdim=context_dim,
        )
        self.norm = nn.LayerNorm(feature_dim) if norm else None
        self.gate = nn.Parameter(torch.zeros(1)) if gate else None

    @classmethod
    def from_config(cls, config: FusionSettings) -> ImageTextFusion:
        """Build the module that a config describes, with torch's initial weights."""
        return cls(
            config.embed_dim,
            config.num_heads,
            image_dim=config.image_dim,
            text_dim=config.text_dim,
            residual=config.residual,
            norm=config.norm,
            null_token=config.null_token,
            gate=config.gate,
            context_dim=config.context_dim or None,
        )

    def fuse(
        self, x: Tensor, y: Tensor, x_real: Tensor | None, y_real: Tensor | None, direction: Side
    ) -> Tensor:
        query, tokens = self.project(x, y, direction)  # [N, T, D], [N, P, D]
        fused = _attend(self.attention, query, tokens, y_real)  # [N, T, D]
        if self.gate is not None:
            fused = x + torch.tanh(self.gate) * fused
        if self.config.residual:
            fused = fused + query
        if self.norm is not None:
            fused = self.norm(fused)
        return fused


class TransformerFusion(_Projecting):
    """A cross-modal Transformer: self-attention, cross-attention to the image, feed-forward.

    `nn.TransformerDecoder` with the norms in front, a last norm behind, and no causal mask.
    Its layers start with weights of their own (torch would make all of them copies of one).
    """

    def __init__(self, config: FusionSettings) -> None:
        super().__init__()
        self.config = FusionConfig.of(config)
        D = config.embed_dim
        self.text_proj = nn.Linear(config.text_dim, D)
        self.image_proj = nn.Linear(config.image_dim, D)
        layers = [
            nn.TransformerDecoderLayer(
                D, config.num_heads, config.ffn_dim, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        ]
        self.decoder = nn.TransformerDecoder(layers[0], config.layers, nn.LayerNorm(D))
        self.decoder.layers = nn.ModuleList(layers)

    def fuse(
        self, x: Tensor, y: Tensor, x_real: Tensor | None, y_real: Tensor | None, direction: Side
    ) -> Tensor:
        rows, memory = self.project(x, y, direction)  # [N, T, D], [N, P, D]
        padding = None
        if x_real is not None:
            # Self-attention of nothing but padding would be NaN; such rows come out as zero.
            padding = ~(x_real | ~x_real.any(dim=1, keepdim=True))
        for layer in self.decoder.layers:
            # As `nn.TransformerDecoderLayer.forward` with norm_first, whose cross-attention
            # cannot do without any token.
            own = layer.norm1(rows)
            rows = (
                rows
                + layer.self_attn(own, own, own, key_padding_mask=padding, need_weights=False)[0]
            )
            rows = rows + _attend(layer.multihead_attn, layer.norm2(rows), memory, y_real)
            rows = rows + layer.linear2(layer.activation(layer.linear1(layer.norm3(rows))))
        assert self.decoder.norm is not None
        fused: Tensor = self.decoder.norm(rows)
        return fused


def build_module(config: FusionConfig) -> PairFusion:
    """The module that a config describes, with torch's initial weights.

    Args:
        config: of any method.
    """
    module = config.how.build_module(config)
    if module is None:
        return LayeredFusion(config)
    assert isinstance(module, PairFusion)
    return module


def _attend(
    attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor, real: Tensor | None
) -> Tensor:
    """Cross-attention. A query token without any real token has a context of zero.

    Args:
        attention: the layer.
        query: `[N, T, D]`.
        tokens: `[N, P, D]`.
        real: bool `[N, P]`, or `[N, T, P]` by query token; None if all are.

    Returns:
        `[N, T, D]`.
    """
    padding = blocked = empty = None
    if real is not None:
        empty = ~real.any(dim=-1)  # [N] or [N, T]
        # Softmax over no token would be NaN; these rows are replaced below.
        masked = ~(real | empty.unsqueeze(-1))
        if real.dim() == 2:
            padding = masked
        else:
            blocked = masked.repeat_interleave(attention.num_heads, dim=0)  # [N H, T, P]
    fused: Tensor
    fused, _ = attention(
        query,
        tokens,
        tokens,
        key_padding_mask=padding,
        attn_mask=blocked,
        need_weights=False,
    )
    if empty is None:
        return fused
    rows = empty.unsqueeze(-1) if empty.dim() == 2 else empty[:, None, None]
    return torch.where(rows, attention.out_proj.bias, fused)  # what is left of a zero context
