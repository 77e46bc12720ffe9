"""A trained network and a line of the table as they are kept in a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusecli.fusion.config import FusionConfig
from fusecli.training.blend import Blend
from fusecli.training.candidates import ModelSpec
from fusecli.training.examples import ChannelStatistics
from fusecli.training.model import PairModel
from fusecli.training.standardise import Arrays, fold_fusion, fold_linear, unit_statistics


@dataclass(frozen=True)
class Member:
    """One trained network of a model; several are averaged.

    Attributes:
        spec: what it is.
        arrays: parameters under their `state_dict` names. Those of a fusion are for raw
            features: the standardisation is folded into its projections.
        text, image: what the channels are standardised with before these parameters; mean 0 and
            spread 1 for a fusion.
        trained_text, trained_image: what was folded in.
        centre, spread: of the labels of `regress`; a logit is spread * output + centre.
    """

    spec: ModelSpec
    arrays: Arrays
    text: ChannelStatistics
    image: ChannelStatistics
    trained_text: ChannelStatistics
    trained_image: ChannelStatistics
    centre: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        model: PairModel,
        text: ChannelStatistics,
        image: ChannelStatistics,
        centre: float,
        spread: float,
    ) -> Member:
        """What is kept of a trained model; a fusion's standardisation is folded in."""
        arrays = {
            name: p.detach().float().cpu().numpy().copy() for name, p in model.named_parameters()
        }
        own_text, own_image = text, image
        if spec.kind == "fusion":
            arrays = _fold(spec, arrays, text, image)
            own_text, own_image = unit_statistics(spec.text_dim), unit_statistics(spec.image_dim)
        return cls(spec, arrays, own_text, own_image, text, image, centre, spread)

    def build(self, device: torch.device) -> PairModel:
        """The network, on a device, for evaluation."""
        model = self.spec.build(self.text, self.image)
        state = {name: torch.from_numpy(a.copy()) for name, a in self.arrays.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        buffers = {name for name, _ in model.named_buffers()}
        assert not unexpected, unexpected
        assert set(missing) <= buffers, missing
        return model.to(device).eval()


def _fold(
    spec: ModelSpec, arrays: Arrays, text: ChannelStatistics, image: ChannelStatistics
) -> Arrays:
    config = FusionConfig.from_dict(dict(spec.fusion or {}), "run.json")
    fusion = {n.removeprefix("fusion."): a for n, a in arrays.items() if n.startswith("fusion.")}
    folded = {f"fusion.{n}": a for n, a in fold_fusion(config, fusion, text, image).items()}
    head = {n: a for n, a in arrays.items() if n.startswith("head.")}
    if "head.text_proj.weight" in head:
        head["head.text_proj.weight"], head["head.text_proj.bias"] = fold_linear(
            head["head.text_proj.weight"], head["head.text_proj.bias"], text
        )
    return folded | head


@dataclass(frozen=True)
class StoredModel:
    """One line of the table as it lies in a run's folder.

    Attributes:
        name: such as "fusion" or "text only".
        variant: the candidate that was taken.
        members: the networks whose logits are averaged.
        constant: logits of "majority".
        tag: logits for every text token.
        calibration: what was fitted on the validation rows, as it was given to `save_models`.
    """

    name: str
    variant: str
    members: tuple[Member, ...]
    constant: NDArray[np.float32] | None
    calibration: dict[str, Any]
    tag: bool
    blend: Blend | None = None
