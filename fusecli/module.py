"""The fusion as a torch module: plain, readable, trainable. The letters are in `shapes.py`.

The arithmetic that `fusecli fuse` runs is in `attention.py`; the tests hold it to this one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusecli.config import FusionConfig
from fusecli.errors import ShapeError


class ImageTextFusion(nn.Module):
    """Fuse image features into text features by cross-attention: text asks, image answers.

    A drop-in for the published `ImageTextFusion(feature_dim, num_heads)`: the same parameter
    names, the same initial weights for the same `torch.manual_seed`, the same numbers.

    With one image token every row of the result is the same and holds nothing of the text,
    because a softmax over one score is 1. `residual`, `null_token` or patch features mend it.

    Args:
        feature_dim: D, the width of the module.
        num_heads: H; divides D.
        image_dim: Di, where image features are not D wide.
        text_dim: Dt, where text features are not D wide.
        residual: add the projected text to the result.
        norm: LayerNorm over the result, after the residual.
        null_token: one extra all-zero key and value (PyTorch's `add_zero_attn`), so that even
            a single image token is weighed, per text token.

    Raises:
        UsageError: a size is not positive, or H does not divide D.
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
    ) -> None:
        super().__init__()
        self.config = FusionConfig(
            feature_dim, num_heads, image_dim or 0, text_dim or 0, residual, norm, null_token
        )
        # This order of creation is the published one: it decides what a seed gives.
        self.text_proj = nn.Linear(self.config.text_dim, feature_dim)
        self.image_proj = nn.Linear(self.config.image_dim, feature_dim)
        self.attention = nn.MultiheadAttention(
            feature_dim, num_heads, add_zero_attn=null_token, batch_first=True
        )
        self.norm = nn.LayerNorm(feature_dim) if norm else None

    @classmethod
    def from_config(cls, config: FusionConfig) -> ImageTextFusion:
        """Build the module that a config describes, with torch's initial weights."""
        return cls(
            config.embed_dim,
            config.num_heads,
            image_dim=config.image_dim,
            text_dim=config.text_dim,
            residual=config.residual,
            norm=config.norm,
            null_token=config.null_token,
        )

    def forward(
        self,
        image_feat: Tensor,
        text_feat: Tensor,
        *,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        allow_empty_image: bool = False,
    ) -> Tensor:
        """Fuse one pair, or a batch of pairs that do not see each other.

        Args:
            image_feat: `[P, Di]` (or `[Di]`, one global vector), in a batch `[N, P, Di]`.
            text_feat: `[T, Dt]`, in a batch `[N, T, Dt]`; the same number type.
            image_mask: `[P]` / `[N, P]`, 1 or true is a real token. A masked token has no
                influence, whatever is stored in it.
            text_mask: `[T]` / `[N, T]`; a masked row of the result is zero.
            allow_empty_image: a sample whose image is all masked gets a context of zero.

        Returns:
            `[T, D]`, in a batch `[N, T, D]`.

        Raises:
            ShapeError: shapes that do not belong together, or an image without a real token.
        """
        _check_shapes(self.config, image_feat, text_feat)
        text = text_feat.reshape(-1, *text_feat.shape[-2:])  # [N, T, Dt]
        image = image_feat.reshape(len(text), -1, image_feat.shape[-1])  # [N, P, Di]
        N, P, T = image.shape[0], image.shape[1], text.shape[1]
        padding = empty = None
        if image_mask is not None:
            real = image_mask.reshape(N, P).to(torch.bool)
            image = image.masked_fill(~real.unsqueeze(-1), 0.0)
            empty = ~real.any(dim=1)  # [N]
            if bool(empty.any()) and not allow_empty_image:
                raise ShapeError(f"sample {int(empty.nonzero()[0])}: every image token is masked")
            # A row of nothing but padding would make the softmax NaN; its result is replaced.
            padding = ~(real | empty.unsqueeze(-1))
        if text_mask is not None:
            words = text_mask.reshape(N, T, 1).to(torch.bool)
            text = text.masked_fill(~words, 0.0)
        query = self.text_proj(text)  # [N, T, D]
        tokens = self.image_proj(image)  # [N, P, D]
        fused, _ = self.attention(
            query, tokens, tokens, key_padding_mask=padding, need_weights=False
        )  # [N, T, D]
        if empty is not None:
            fused = torch.where(empty[:, None, None], self.attention.out_proj.bias, fused)
        if self.config.residual:
            fused = fused + query
        if self.norm is not None:
            fused = self.norm(fused)
        if text_mask is not None:
            fused = fused.masked_fill(~words, 0.0)
        result: Tensor = fused if text_feat.dim() == 3 else fused[0]
        return result


def _check_shapes(config: FusionConfig, image: Tensor, text: Tensor) -> None:
    shapes = f"image {list(image.shape)} and text {list(text.shape)}"
    if (image.dim(), text.dim()) not in ((1, 2), (2, 2), (3, 3)):
        raise ShapeError(f"{shapes}: expected [P, Di] with [T, Dt], or [N, P, Di] with [N, T, Dt]")
    if image.shape[-1] != config.image_dim or text.shape[-1] != config.text_dim:
        raise ShapeError(
            f"{shapes}: expected widths Di = {config.image_dim} and Dt = {config.text_dim}"
        )
    if 0 in image.shape or 0 in text.shape:
        raise ShapeError(f"{shapes}: there is nothing to fuse")
    if image.dim() == 3 and image.shape[0] != text.shape[0]:
        raise ShapeError(f"{shapes}: the numbers of samples differ")
