"""Logits of a model while it is trained: of held-out rows, and the wrong partners of `match`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fusecli.training.examples import Examples
from fusecli.training.model import PairModel, TorchBatch
from fusecli.training.side_index import Rows
from fusecli.training.targets import Targets

Floats = NDArray[np.float32]

_EVALUATED_AT_ONCE = 256


@dataclass(frozen=True)
class Setting:
    """What all jobs of a fit share.

    Attributes:
        examples: the features.
        targets: the labels.
        device: where it is computed.
        autocast: bfloat16 on a GPU.
        groups: int64 [n]; negatives of `match` come from another group.
        stop: set when the run is to stop; jobs then raise `Stopped` after the batch in hand.
    """

    examples: Examples
    targets: Targets
    device: torch.device
    autocast: bool
    groups: Rows
    stop: threading.Event = field(default_factory=threading.Event)


def negatives(rows: Rows, setting: Setting, order: np.random.Generator) -> Rows:
    """For each pair another of these pairs whose image and group are others, where there is one."""
    content = setting.examples.content("image")[rows]
    groups = setting.groups[rows]
    other = (content[:, None] != content) & (groups[:, None] != groups)
    draw = np.where(other, order.random(other.shape), -1.0)
    chosen: Rows = rows[draw.argmax(axis=1)]
    return chosen


@torch.inference_mode()
def predict(
    model: PairModel, setting: Setting, rows: Rows, image_rows: Rows | None = None
) -> Floats:
    """Logits of some pairs in batches of like length, without dropout.

    Returns:
        float32 `[N, C]`, for `tag` `[N, Tmax, C]`, zero where there is no token.
    """
    examples = setting.examples
    image_rows = rows if image_rows is None else image_rows
    order = np.lexsort((examples.lengths("text")[rows], examples.lengths("image")[image_rows]))
    out: Floats | None = None
    longest = int(examples.lengths("text").max())
    for start in range(0, len(rows), _EVALUATED_AT_ONCE):
        part = order[start : start + _EVALUATED_AT_ONCE]
        batch = examples.batch(rows[part], image_rows[part], model.pooled)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.autocast):
            logits = model(TorchBatch.of(batch, setting.device)).float().cpu().numpy()
        if out is None:
            tag = logits.ndim == 3
            shape = (len(rows), longest, logits.shape[2]) if tag else (len(rows), logits.shape[1])
            out = np.zeros(shape, np.float32)
        if logits.ndim == 3:
            out[part, : logits.shape[1]] = logits
        else:
            out[part] = logits
    assert out is not None
    return out


def predict_held_out(model: PairModel, setting: Setting, rows: Rows, seed: int) -> Floats:
    """Logits of held-out rows; for `match` also of as many wrong pairs, behind them."""
    if setting.targets.task != "match":
        return predict(model, setting, rows)
    wrong = negatives(rows, setting, np.random.default_rng(seed))
    return predict(model, setting, np.concatenate([rows, rows]), np.concatenate([rows, wrong]))
