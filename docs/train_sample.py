"""Train a fusion on the four sample pairs, so that there is attention to look at.

    python docs/train_sample.py sample.safetensors

It learns which picture belongs to which caption. Four pairs can only be learnt by heart: what
the attention then shows is what tells these pictures apart, not what the words mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from fusecli import ImageTextFusion, save_module

SAMPLES = Path(__file__).parent.parent / "sample_features"
NAMES = ("astronaut", "cat", "coffee", "rocket")


def train(steps: int) -> ImageTextFusion:
    """Contrast each caption's own picture with the others (Radford et al. 2021, CLIP)."""
    torch.manual_seed(0)
    images = [torch.from_numpy(np.load(SAMPLES / f"{name}.image.npy")) for name in NAMES]
    texts = [torch.from_numpy(np.load(SAMPLES / f"{name}.text.npy")) for name in NAMES]
    fusion = ImageTextFusion(384, 4, image_dim=320)
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-3)
    own = torch.arange(len(NAMES))
    for _ in range(steps):
        alike = [F.cosine_similarity(fusion(i, t), t, dim=-1).mean() for t in texts for i in images]
        scores = 10 * torch.stack(alike).reshape(len(NAMES), len(NAMES))  # [texts, images]
        loss = F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fusion


if __name__ == "__main__":
    save_module(train(steps=100), sys.argv[1], force=True)
