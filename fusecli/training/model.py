"""Trainable models as torch modules: what they share, and the fusion with its head.

Letters: N pairs, T text tokens, P image tokens, Dt and Di the widths of the features, D the
width of the module, H heads, d = D / H, C logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from fusecli.features.literals import Side
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.pair_module import PairFusion
from fusecli.fusion.torch_modules import ImageTextFusion, build_module
from fusecli.training.examples import Batch, ChannelStatistics, Pooled
from fusecli.training.head import LARGE, FusionHead, Noise


@dataclass(frozen=True)
class TorchBatch:
    """A `Batch` on a device: text `[N, T, Dt]`, image `[N, P, Di]`, masks bool or None."""

    text: Tensor
    image: Tensor
    text_mask: Tensor | None
    image_mask: Tensor | None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> TorchBatch:
        """Move a batch to a device."""
        arrays = (batch.text, batch.image, batch.text_mask, batch.image_mask)
        return cls(*(None if a is None else torch.from_numpy(a).to(device) for a in arrays))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelShape:
    """What every kind of model has to know.

    Attributes:
        hidden: width of hidden layers.
        outputs: number of logits C.
        tag: logits for every text token instead of for the pair.
        text, image: what the channels are standardised with.
    """

    hidden: int
    outputs: int
    tag: bool
    text: ChannelStatistics
    image: ChannelStatistics


class PairModel(nn.Module):
    """A model of pairs: each side is encoded by itself, then both are joined to logits.

    The two steps are apart so that all combinations of some texts and images cost little.

    Attributes:
        pooled: sides that are given as the mean of their tokens.
    """

    pooled: Pooled

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        for side, statistics in (("text", shape.text), ("image", shape.image)):
            scale = 1 / statistics.std
            self.register_buffer(f"{side}_scale", torch.from_numpy(scale))
            self.register_buffer(f"{side}_shift", torch.from_numpy(-statistics.mean * scale))

    def standardise(self, side: Side, x: Tensor, noise: Noise | None) -> Tensor:
        """Channels of mean 0 and spread 1; some of them dropped while training."""
        scale, shift = getattr(self, f"{side}_scale"), getattr(self, f"{side}_shift")
        kept = None if noise is None else noise.channel_scale(x)
        if kept is not None:
            scale, shift = scale * kept, shift * kept
        return torch.addcmul(shift, x, scale)

    def forward(self, batch: TorchBatch, noise: Noise | None = None) -> Tensor:
        """Logits `[N, C]`, for `tag` `[N, T, C]`."""
        text = self.encode_text(batch.text, noise)
        image = self.encode_image(batch.image, noise)
        return self.join(replace(batch, text=text, image=image), noise)

    def encode_text(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """What `join` takes of the texts, from `[N, T, Dt]`."""
        return self.standardise("text", x, noise)

    def encode_image(self, y: Tensor, noise: Noise | None = None) -> Tensor:
        """What `join` takes of the images, from `[N, P, Di]`."""
        return self.standardise("image", y, noise)

    def join(self, encoded: TorchBatch, noise: Noise | None = None) -> Tensor:
        """Logits of encoded texts and images, pair by pair."""
        raise NotImplementedError


class FusionModel(PairModel):
    """A fusion of `fusecli fuse` with a head.

    Args:
        config: of the fusion; concat and sum are projected.
        shape: of the head, and the statistics of the features.
    """

    def __init__(self, config: FusionConfig, shape: ModelShape) -> None:
        super().__init__(shape)
        self.fusion: PairFusion = build_module(config)
        own = "text_proj" not in dict(self.fusion.named_children())
        self.head = FusionHead(
            config.embed_dim,
            shape.hidden,
            shape.outputs,
            not shape.tag,
            config.text_dim if own else 0,
        )
        # The mean of the image tokens can be taken before the projection.
        self.pooled = Pooled(image=config.how.pools_context)
        if isinstance(self.fusion, ImageTextFusion):
            with torch.no_grad():  # attention starts less uniform, and learns where to look
                self.fusion.attention.in_proj_weight[: 2 * config.embed_dim] *= 2

    @property
    def _split(self) -> bool:
        """Whether the projections are applied when a side is encoded, not when joined."""
        config = self.fusion.config
        return config.method == "attention" and not (config.null_token or config.gate)

    def encode_text(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        x = self.standardise("text", x, noise)
        return self.fusion.text_proj(x) if self._split else x  # type: ignore[operator]

    def encode_image(self, y: Tensor, noise: Noise | None = None) -> Tensor:
        y = self.standardise("image", y, noise)
        return self.fusion.image_proj(y) if self._split else y  # type: ignore[operator]

    def join(self, encoded: TorchBatch, noise: Noise | None = None) -> Tensor:
        text, image, image_mask = encoded.text, encoded.image, encoded.image_mask
        if noise is not None:
            image_mask = noise.patch_mask(image, image_mask)
        if self._split:
            assert isinstance(self.fusion, ImageTextFusion)
            fused = attend(self.fusion, text, image, image_mask)
            tokens = text
        else:
            fused = self.fusion(image, text, image_mask=image_mask, text_mask=encoded.text_mask)
            proj = getattr(self.fusion, "text_proj", None)
            tokens = text if proj is None else proj(text)
        logits: Tensor = self.head(fused, tokens, encoded.text_mask, noise)
        return logits


def attend(
    fusion: ImageTextFusion, text: Tensor, image: Tensor, image_mask: Tensor | None
) -> Tensor:
    """`ImageTextFusion.fuse` of projected tokens, in the order of products that costs less.

    With few text tokens the keys and values are never formed: the query is taken through the
    key's weights, and the attention weights are applied to the projected image tokens before
    the value's weights. Padding rows of the text hold anything.

    Args:
        fusion: without null token and gate.
        text: `[N, T, D]`, after `text_proj`.
        image: `[N, P, D]`, after `image_proj`.
        image_mask: bool `[N, P]`, true is a real token; None if all are.

    Returns:
        `[N, T, D]`.
    """
    module = fusion.attention
    N, T, D = text.shape
    P, H = image.shape[1], module.num_heads
    d = D // H
    weights_q, weights_k, weights_v = module.in_proj_weight.chunk(3)  # [D, D] each
    bias_q, _, bias_v = module.in_proj_bias.chunk(3)
    if P == 1:
        # All attention goes to the only image token, whatever the query asks.
        values = F.linear(image, weights_v, bias_v)  # [N, 1, D]
        return _finish(fusion, module.out_proj(values).expand(N, T, D), text)
    query = F.linear(text, weights_q, bias_q).view(N, T, H, d)
    # Narrow products have their own cost: the difference has to be worth it.
    wide = 1.5 * (H * T * P * D + T * D * D) < P * D * D + T * P * D
    scores = (_wide_scores if wide else _scores)(query, weights_k, image) * d**-0.5
    if image_mask is not None:
        scores = scores.masked_fill(~image_mask.unsqueeze(1), LARGE)
    attention = torch.softmax(scores, dim=-1)  # [N, H T, P], float32 under autocast
    context = (_wide_context if wide else _context)(attention, weights_v, image, H)
    # Attention weights sum to 1, so the bias of the values passes through unchanged.
    return _finish(fusion, module.out_proj(context + bias_v), text)


def _scores(query: Tensor, weights_k: Tensor, image: Tensor) -> Tensor:
    """Query `[N, T, H, d]` times the keys of the image `[N, P, D]`: `[N, H T, P]`."""
    N, T, H, d = query.shape
    P = image.shape[1]
    keys = F.linear(image, weights_k).view(N, P, H, d).permute(0, 2, 3, 1)  # [N, H, d, P]
    return (query.transpose(1, 2) @ keys).reshape(N, H * T, P)


def _wide_scores(query: Tensor, weights_k: Tensor, image: Tensor) -> Tensor:
    """The same without forming the keys: the query goes through their weights."""
    N, T, H, d = query.shape
    D = image.shape[2]
    asked = query.view(N * T, H, d).transpose(0, 1)  # [H, N T, d]
    asked = torch.bmm(asked, weights_k.view(H, d, D))  # [H, N T, D]
    asked = asked.view(H, N, T, D).transpose(0, 1).reshape(N, H * T, D)
    return asked @ image.transpose(1, 2)


def _context(attention: Tensor, weights_v: Tensor, image: Tensor, H: int) -> Tensor:
    """Attention weights `[N, H T, P]` times the values of the image `[N, P, D]`: `[N, T, D]`."""
    N, P, D = image.shape
    T, d = attention.shape[1] // H, D // H
    values = F.linear(image, weights_v).view(N, P, H, d).transpose(1, 2)  # [N, H, P, d]
    context = attention.view(N, H, T, P) @ values  # [N, H, T, d]
    return context.transpose(1, 2).reshape(N, T, D)


def _wide_context(attention: Tensor, weights_v: Tensor, image: Tensor, H: int) -> Tensor:
    """The same without forming the values."""
    N, _, D = image.shape
    T, d = attention.shape[1] // H, D // H
    context = (attention @ image).view(N, H, T, D).transpose(0, 1).reshape(H, N * T, D)
    context = torch.bmm(context, weights_v.view(H, d, D).transpose(1, 2))  # [H, N T, d]
    return context.transpose(0, 1).reshape(N, T, D)


def _finish(fusion: ImageTextFusion, fused: Tensor, text: Tensor) -> Tensor:
    """The residual and the norm behind attention, where the fusion has them."""
    if fusion.config.residual:
        fused = fused + text
    normed: Tensor = fused if fusion.norm is None else fusion.norm(fused)
    return normed
