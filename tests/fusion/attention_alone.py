"""One pair for tests of a plain attention, without projections in front."""

import numpy as np
import torch

D, H = 48, 4


def save_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """`image.npy` `[6, D]` and `text.npy` `[7, D]` in the working directory, and what they hold."""
    torch.manual_seed(0)
    image, text = torch.randn(6, D), torch.randn(7, D)
    np.save("image.npy", image.numpy())
    np.save("text.npy", text.numpy())
    return image, text
