"""Train a fusion on the four sample pairs, so that there is attention to look at.

    python docs/train_sample.py sample.safetensors

It learns which picture belongs to which caption. Four pairs can only be learnt by heart: what
the attention then shows is what tells these pictures apart, not what the words mean. For a
fusion that is worth using see `fusecli train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own short name
from torch.nn.utils.rnn import pad_sequence

from fusecli import ImageTextFusion, save_module

SAMPLES = Path(__file__).parent.parent / "sample_features"
NAMES = ("astronaut", "cat", "coffee", "rocket")
TOLD = 10  # steps between two lines


def train(steps: int) -> ImageTextFusion:
    """Contrast each caption's own picture with the others (Radford et al. 2021, CLIP)."""
    torch.manual_seed(0)
    image = torch.from_numpy(np.stack([np.load(SAMPLES / f"{name}.image.npy") for name in NAMES]))
    texts = [torch.from_numpy(np.load(SAMPLES / f"{name}.text.npy")) for name in NAMES]
    lengths = torch.tensor([len(text) for text in texts])
    text = pad_sequence(texts, batch_first=True)  # [4, T, Dt]
    real = torch.arange(text.shape[1]) < lengths[:, None]  # [4, T]
    count = len(NAMES)
    own = torch.arange(count)
    fusion = ImageTextFusion(384, 4, image_dim=320)
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        # Each picture with every text: the texts' tokens in one row, [4, 4 T, Dt].
        asked = text.reshape(1, -1, text.shape[-1]).expand(count, -1, -1)
        fused = fusion(image, asked).reshape(count, *text.shape)  # [pictures, texts, T, D]
        alike = F.cosine_similarity(fused, text, dim=-1).masked_fill(~real, 0.0)
        scores = (10 * alike.sum(dim=2) / lengths).T  # [texts, pictures]
        loss = F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % TOLD == 0 or step == steps:
            print(f"step {step}/{steps}, loss {loss.item():.4f}", file=sys.stderr)
    return fusion


if __name__ == "__main__":
    save_module(train(steps=40), sys.argv[1], force=True)
