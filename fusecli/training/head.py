"""The head of a trained fusion: from fused tokens to logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name

LARGE = -1e9  # instead of minus infinity, so that a row of nothing but padding stays finite


class Noise:
    """Random numbers of training, all drawn from one generator so that a run can be repeated.

    Args:
        generator: on the device of the tensors.
        channels: probability that an input channel of a pair is zero (its mean) in a step.
        patches: probability that an image token is left out.
        head: probability of dropout in the head.
    """

    def __init__(
        self, generator: torch.Generator, channels: float, patches: float, head: float
    ) -> None:
        self.generator = generator
        self.channels, self.patches, self.head = channels, patches, head

    def drop(self, x: Tensor, rate: float) -> Tensor:
        """Dropout of single numbers."""
        return x if rate == 0 else x * self._kept(x.shape, rate, x)

    def channel_scale(self, x: Tensor) -> Tensor | None:
        """`[N, 1, D]` for x `[N, T, D]`: one draw for all tokens of a pair."""
        if self.channels == 0:
            return None
        return self._kept((x.shape[0], 1, x.shape[2]), self.channels, x)

    def patch_mask(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Mask `[N, P]` of the image tokens of x `[N, P, D]` that stay; at least one of a pair."""
        if self.patches == 0 or x.shape[1] == 1:
            return mask
        draw = torch.rand(x.shape[:2], generator=self.generator, device=x.device)
        if mask is not None:
            draw = draw.masked_fill(~mask, -1.0)
        kept = (draw >= self.patches) | (draw == draw.amax(dim=1, keepdim=True))
        return kept if mask is None else kept & mask

    def _kept(self, shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
        """0 with the probability `rate`, else 1 / (1 - rate).

        16 random bits an entry cost a third of what `bernoulli_` costs on a CPU, where it was a
        sixth of a step.
        """
        if like.device.type not in ("cpu", "cuda"):
            kept = torch.empty(shape, device=like.device, dtype=like.dtype)
            return kept.bernoulli_(1 - rate, generator=self.generator).div_(1 - rate)
        count = math.prod(shape)
        words = torch.empty((count + 3) // 4, device=like.device, dtype=torch.int64)
        words.random_(-(2**63), None, generator=self.generator)
        drawn = words.view(torch.int16)[:count].view(shape)
        return (drawn >= round(2**16 * rate) - 2**15).to(like.dtype).div_(1 - rate)


def pool_tokens(z: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean over the real tokens: z `[N, T, D]`, scores `[N, T]` to `[N, D]`."""
    if z.shape[1] == 1:
        return z[:, 0]
    if mask is not None:
        scores = scores.masked_fill(~mask, LARGE)
    weights = torch.softmax(scores, dim=1)  # [N, T], float32 under autocast
    return (weights.unsqueeze(1) @ z).squeeze(1)


class MLP(nn.Module):
    """One hidden layer, with dropout in front of both linear layers.

    Args:
        inputs: width of the input.
        hidden: width of the hidden layer.
        outputs: number of logits.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, z: Tensor, noise: Noise | None = None) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        rate = 0.0 if noise is None else noise.head
        z = z if noise is None else noise.drop(z, rate)
        z = F.gelu(self.hidden(z))
        z = z if noise is None else noise.drop(z, rate)
        logits: Tensor = self.out(z)
        return logits


class FusionHead(nn.Module):
    """From each text token's `[fused ; token ; fused * token]` to the logits of the pair.

    The tokens are pooled by a learned weight, which starts as the mean; for `tag` they are not
    pooled, and every token has logits of its own.

    Args:
        width: D, of the fused rows and of the projected tokens.
        hidden: width of the hidden layer.
        outputs: number of logits C.
        pooled: false for `tag`.
        text_dim: Dt for a fusion that has no `text_proj`; the head then projects the tokens
            itself. 0 where the fusion's projected tokens are given.
    """

    def __init__(
        self, width: int, hidden: int, outputs: int, pooled: bool, text_dim: int = 0
    ) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_dim, width) if text_dim else None
        self.score = nn.Parameter(torch.zeros(3 * width)) if pooled else None
        self.mlp = MLP(3 * width, hidden, outputs)

    def forward(
        self, fused: Tensor, tokens: Tensor, mask: Tensor | None, noise: Noise | None = None
    ) -> Tensor:
        """Logits.

        Args:
            fused: `[N, T, D]`.
            tokens: `[N, T, D]` projected, or `[N, T, Dt]` with a `text_proj` of its own.
            mask: bool `[N, T]`, true is a real token; None if all are.
            noise: dropout, while training.

        Returns:
            `[N, C]`, without pooling `[N, T, C]`.
        """
        if self.text_proj is not None:
            tokens = self.text_proj(tokens)
        z = torch.cat((fused, tokens, fused * tokens), dim=-1)  # [N, T, 3 D]
        if self.score is not None:
            z = pool_tokens(z, z @ self.score, mask)  # [N, 3 D]
        logits: Tensor = self.mlp(z, noise)
        return logits
