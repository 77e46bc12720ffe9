"""What a fusion has to beat: each side alone, both without interaction, and concat + MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusecli.training.examples import Pooled
from fusecli.training.head import MLP, Noise, pool_tokens
from fusecli.training.model import ModelShape, PairModel, TorchBatch


class _TokenNet(nn.Module):
    """Logits of one side: tokens through a linear layer, learned pooling, then an MLP."""

    def __init__(self, inputs: int, width: int, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width)
        self.score = nn.Parameter(torch.zeros(width)) if pooled else None
        self.mlp = MLP(width, width, outputs)

    def forward(self, x: Tensor, mask: Tensor | None, noise: Noise | None) -> Tensor:
        if self.score is None:
            z = self.proj(x)
        else:
            # The same numbers as pooling after the projection, whose bias moves all scores
            # alike, and only one token is projected.
            z = self.proj(pool_tokens(x, x @ (self.proj.weight.T @ self.score), mask))
        logits: Tensor = self.mlp(z, noise)
        return logits


class _LinearNet(nn.Module):
    """Logits of one side that is one token, or for `tag` of each token, by one linear layer."""

    def __init__(self, inputs: int, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.out = nn.Linear(inputs, outputs)
        self.pooled = pooled

    def forward(self, x: Tensor, mask: Tensor | None, noise: Noise | None) -> Tensor:
        logits: Tensor = self.out(x[:, 0] if self.pooled else x)
        return logits


class AdditiveModel(PairModel):
    """Text logits plus image logits; with one side only, a unimodal baseline.

    Args:
        linear: one linear layer on the mean of the tokens, instead of learned pooling and an
            MLP on the tokens.
        sides: "text", "image" or both.
        shape: of the networks, and the statistics of the features.
    """

    def __init__(self, linear: bool, sides: tuple[str, ...], shape: ModelShape) -> None:
        super().__init__(shape)
        self.tag = tag = shape.tag
        unused = (("text" not in sides), ("image" not in sides))
        self.pooled = Pooled((linear and not tag) or unused[0], linear or unused[1])
        self.nets = nn.ModuleDict()
        for side, statistics in (("text", shape.text), ("image", shape.image)):
            if side in sides:
                pooled = side == "image" or not tag
                inputs = len(statistics.mean)
                self.nets[side] = (
                    _LinearNet(inputs, shape.outputs, pooled)
                    if linear
                    else _TokenNet(inputs, shape.hidden, shape.outputs, pooled)
                )
        if tag and "text" not in sides:
            # Every token of a pair gets the same logits; the number of tokens is the text's.
            self.pooled = Pooled(False, linear)

    def join(self, encoded: TorchBatch, noise: Noise | None = None) -> Tensor:
        parts = []
        if "text" in self.nets:
            parts.append(self.nets["text"](encoded.text, encoded.text_mask, noise))
        if "image" in self.nets:
            logits = self.nets["image"](encoded.image, encoded.image_mask, noise)  # [N, C]
            if self.tag:
                logits = logits.unsqueeze(1).expand(-1, encoded.text.shape[1], -1)
            parts.append(logits)
        total: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return total


class ConcatMLP(PairModel):
    """An MLP on [text ; mean of the image tokens]; the text is its mean, for `tag` each token.

    Args:
        shape: of the network, and the statistics of the features.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        self.pooled = Pooled(not shape.tag, True)
        self.tag = shape.tag
        inputs = len(shape.text.mean) + len(shape.image.mean)
        self.mlp = MLP(inputs, 2 * shape.hidden, shape.outputs)

    def join(self, encoded: TorchBatch, noise: Noise | None = None) -> Tensor:
        text = encoded.text
        z = torch.cat((text, encoded.image.expand(-1, text.shape[1], -1)), dim=-1)  # [N, T or 1, .]
        logits: Tensor = self.mlp(z if self.tag else z[:, 0], noise)
        return logits
