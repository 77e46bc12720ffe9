"""What is minimised, for each task."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from fusecli.training.side_index import Rows
from fusecli.training.targets import IGNORED, Targets


def loss_of(logits: Tensor, targets: Targets, rows: Rows, smoothing: float) -> Tensor:
    """Mean loss over the rows, weighted where the labels have weights.

    Args:
        logits: `[N, C]`, for `tag` `[N, T, C]`; for `match` `[2 N, 1]`, own pairs first.
        targets: the labels.
        rows: int64 `[N]`.
        smoothing: share of the label that is spread over all classes.
    """
    device = logits.device
    weight = None
    if targets.weight is not None:
        weight = torch.from_numpy(targets.weight[rows].astype(np.float32)).to(device)
    if targets.task == "match":
        wanted = torch.zeros_like(logits[:, 0])
        wanted[: len(rows)] = 1
        wanted = wanted * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], wanted, reduction="none")
        return _weighted_mean(losses, None if weight is None else torch.cat((weight, weight)))
    values = torch.from_numpy(np.ascontiguousarray(targets.values[rows])).to(device)
    if targets.task == "tag":
        values = values[:, : logits.shape[1]]
        real = values != IGNORED
        if weight is not None:
            weight = weight[:, None].expand_as(values)[real]
        losses = F.cross_entropy(
            logits[real], values[real], label_smoothing=smoothing, reduction="none"
        )
        return _weighted_mean(losses, weight)
    if targets.task == "regress":
        losses = (logits[:, 0] - values) ** 2
    elif targets.task == "multilabel":
        wanted = values * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
    else:
        losses = F.cross_entropy(logits, values, label_smoothing=smoothing, reduction="none")
    return _weighted_mean(losses, weight)


def _weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean()
    return (losses * weight).sum() / weight.sum().clamp(min=1e-12)
