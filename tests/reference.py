"""The published module, written from scratch, as the oracle the tests hold fusecli to."""

from torch import Tensor, nn


class PlainImageTextFusion(nn.Module):
    """One global image vector `[1, D]` (or tokens `[P, D]`) and text `[T, D]` to `[T, D]`.

    The image is expanded to the text's length where it is one vector, and both go through
    `nn.MultiheadAttention` sequence first, as a batch of one.
    """

    def __init__(self, feature_dim: int, num_heads: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(feature_dim, feature_dim)
        self.image_proj = nn.Linear(feature_dim, feature_dim)
        self.attention = nn.MultiheadAttention(embed_dim=feature_dim, num_heads=num_heads)

    def forward(self, image_feat: Tensor, text_feat: Tensor) -> Tensor:
        text = self.text_proj(text_feat).unsqueeze(1)  # [T, 1, D]
        image = self.image_proj(image_feat)
        if image.shape[0] == 1:
            image = image.expand(text.shape[0], -1)  # [T, D], T times the same
        image = image.unsqueeze(1)
        fused, _ = self.attention(query=text, key=image, value=image)
        result: Tensor = fused.squeeze(1)
        return result
