"""A trained model of any kind, ready to give logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusecli.training.blend import Blend
from fusecli.training.checkpoint import EpochRecord
from fusecli.training.examples import Examples, Side
from fusecli.training.loop import Recipe
from fusecli.training.model import PairModel, TorchBatch
from fusecli.training.side_index import Rows
from fusecli.training.stored import Member, StoredModel
from fusecli.training.targets import IGNORED, Targets

Floats = NDArray[np.float32]

_AT_ONCE = 256
_CROSS_BYTES = 64 << 20  # encoded images that are held while texts pass by


@dataclass(frozen=True)
class FitInfo:
    """How a model was found.

    Attributes:
        variant: the candidate that was chosen.
        epochs: number of epochs with the best score.
        score_name: what the scores are, such as "AUC".
        scores: validation score (or mean over folds) of every candidate.
        history: the epochs of each job of the chosen candidate, by the job's name.
        recipe: how the chosen candidate was trained; None where nothing was.
    """

    variant: str
    epochs: int = 0
    score_name: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[EpochRecord]] = field(default_factory=dict)
    recipe: Recipe | None = None


class Fitted:
    """One line of the table: a model that gives logits for pairs, without a temperature.

    Attributes:
        name: "majority", "text only", "image only", "additive", "concat + MLP" or "fusion".
        members: the networks whose logits are averaged; none for "majority".
        constant: float32 `[C]`, the logits of "majority".
        info: how it was found.
        tuning_rows: int64 `[m]`, rows that this model's tuning logits are for: the validation
            part, or after folds all of training and validation.
        tuning_logits: float32 `[m, C]`, for `tag` `[m, T, C]`, for `match` `[2 m, 1]` with wrong
            images last; by networks that were not trained on these rows. Temperature and threshold
            are to be fitted on them.
        blend: the factors of the networks and of the `parts` in their sum; None: the networks
            alone.
        parts: other lines of the table that are added to this one.
    """

    def __init__(
        self,
        name: str,
        members: list[Member],
        examples: Examples,
        device: torch.device,
        info: FitInfo,
        tuning_rows: Rows,
        tuning_logits: Floats,
        constant: Floats | None = None,
        tag: bool = False,
        blend: Blend | None = None,
        parts: Sequence[Fitted] = (),
    ) -> None:
        self.name, self.members, self.info = name, members, info
        self.tuning_rows, self.tuning_logits, self.constant = tuning_rows, tuning_logits, constant
        self._examples, self._device = examples, device
        self._built: list[PairModel] | None = None
        self.tag = members[0].spec.tag if members else tag
        self.blend, self.parts = blend, tuple(parts)

    @classmethod
    def restored(
        cls,
        stored: StoredModel,
        examples: Examples,
        device: torch.device,
        before: Mapping[str, Fitted],
    ) -> Fitted:
        """A model of a run's folder, for some pairs; it has no tuning rows.

        Args:
            stored: as it lies in the folder.
            examples: the features of the pairs.
            device: that computes.
            before: the lines of the table before this one, which may be added to it.
        """
        nothing = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        counted = stored.blend.factors if stored.blend is not None else {}
        return cls(
            stored.name,
            list(stored.members),
            examples,
            device,
            FitInfo(stored.variant),
            *nothing,
            stored.constant,
            stored.tag,
            stored.blend,
            [before[name] for name in counted if name != stored.name],
        )

    @property
    def shares(self) -> dict[str, float]:
        """The share of each model in this line; they sum to 1. Empty for its networks alone."""
        return {} if self.blend is None else self.blend.shares

    def network(self) -> Fitted:
        """The networks of this line without the other lines; without tuning rows."""
        return self._of(self.members)

    def alone(self, number: int) -> Fitted:
        """One of the networks alone, to measure the spread over seeds."""
        return self._of([self.members[number]])

    def _of(self, members: list[Member]) -> Fitted:
        nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return Fitted(
            self.name, members, self._examples, self._device, self.info, *nothing, tag=self.tag
        )

    def with_parts(self, blend: Blend, parts: Sequence[Fitted]) -> Fitted:
        """The weighted sum of this model and others, for the tuning rows as well."""
        tuning = [(part.name, part.tuning_logits) for part in parts]
        found = Fitted(
            self.name,
            self.members,
            self._examples,
            self._device,
            self.info,
            self.tuning_rows,
            self.tuning_logits,
            blend=blend,
            parts=parts,
        )
        found.tuning_logits = found._sum([(self.name, self.tuning_logits), *tuning])
        return found

    def logits(self, rows: Rows, image_rows: Rows | None = None) -> Floats:
        """Logits of pairs.

        Args:
            rows: int64 `[m]`, the pairs whose texts are read.
            image_rows: int64 `[m]`, the pairs whose images stand beside them; None: their own.

        Returns:
            float32 `[m, C]`, for `tag` `[m, Tmax, C]`, zero where there is no token.
        """
        if self.constant is not None:
            return self._constant((len(rows),))
        if self.blend is not None:
            models = self._counted()
            return self._sum([(model.name, model.logits(rows, image_rows)) for model in models])
        image_rows = rows if image_rows is None else image_rows
        text_lengths = self._examples.lengths("text")
        order = np.lexsort((text_lengths[rows], self._examples.lengths("image")[image_rows]))
        out: Floats | None = None
        for start in range(0, len(rows), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            logits = self._forward(rows[part], image_rows[part])
            if out is None:
                out = np.zeros((len(rows), *self._shape(logits)), np.float32)
            if self.tag:
                out[part, : logits.shape[1]] = logits
            else:
                out[part] = logits
        assert out is not None, "no rows"
        return out

    def cross_logits(self, text_rows: Rows, image_rows: Rows) -> Floats:
        """Logits of every text with every image; each side is encoded once.

        Returns:
            float32 `[a, b, C]`, for `tag` `[a, b, Tmax, C]`.
        """
        a, b = len(text_rows), len(image_rows)
        if self.constant is not None:
            return self._constant((a, b))
        if self.blend is not None:
            models = self._counted()
            return self._sum(
                [(model.name, model.cross_logits(text_rows, image_rows)) for model in models]
            )
        out: Floats | None = None
        total = len(self._networks())
        for model in self._networks():
            for images, encoded, mask in self._encoded_images(model, image_rows):
                for position, row in enumerate(text_rows):
                    logits = self._join_one(model, int(row), encoded, mask)
                    if out is None:
                        out = np.zeros((a, b, *self._shape(logits)), np.float32)
                    if self.tag:
                        out[position, images, : logits.shape[1]] += logits / total
                    else:
                        out[position, images] += logits / total
        assert out is not None, "no rows"
        return out

    def _counted(self) -> list[Fitted]:
        """The models that are added up."""
        assert self.blend is not None
        own = [self.network()] if self.name in self.blend.factors else []
        return own + list(self.parts)

    def _sum(self, logits: Sequence[tuple[str, Floats]]) -> Floats:
        """Weighted sum of logits. For `regress`, the distances to the mean are weighted."""
        assert self.blend is not None
        centre = self.members[0].centre
        total: Floats | None = None
        for name, given in logits:
            factor = self.blend.factors.get(name, 0.0)
            if factor:
                own = np.float32(factor) * (given - np.float32(centre))
                total = own if total is None else total + own
        assert total is not None, "a blend has a model"
        return total + np.float32(centre)

    def _networks(self) -> list[PairModel]:
        if self._built is None:
            self._built = [member.build(self._device) for member in self.members]
        return self._built

    @torch.inference_mode()
    def _forward(self, rows: Rows, image_rows: Rows) -> Floats:
        """Mean of the networks' logits of one batch."""
        total: Floats | None = None
        networks = self._networks()
        for model in networks:
            batch = self._examples.batch(rows, image_rows, model.pooled)
            logits = self._scaled(model(TorchBatch.of(batch, self._device)))
            total = logits if total is None else total + logits
        assert total is not None
        return total if len(networks) == 1 else total / np.float32(len(networks))

    @torch.inference_mode()
    def _join_one(self, model: PairModel, row: int, images: Tensor, mask: Tensor | None) -> Floats:
        """Logits of one text with some encoded images `[b, P, .]`."""
        x, text_mask = self._side("text", np.array([row]), model.pooled.text)
        text = model.encode_text(x).expand(len(images), -1, -1)
        if text_mask is not None:
            text_mask = text_mask.expand(len(images), -1)
        return self._scaled(model.join(TorchBatch(text, images, text_mask, mask)))

    @torch.inference_mode()
    def _encoded_images(
        self, model: PairModel, rows: Rows
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        longest = int(self._examples.lengths("image")[rows].max())
        width = max(self._examples.image_dim, 128)
        step = max(1, _CROSS_BYTES // (4 * longest * width))
        for start in range(0, len(rows), step):
            y, mask = self._side("image", rows[start : start + step], model.pooled.image)
            yield slice(start, start + step), model.encode_image(y), mask

    def _side(self, side: Side, rows: Rows, pooled: bool) -> tuple[Tensor, Tensor | None]:
        tokens, mask = self._examples.side(side, rows, pooled)
        real = None if mask is None else torch.from_numpy(mask).to(self._device)
        return torch.from_numpy(tokens).to(self._device), real

    def _scaled(self, logits: Tensor) -> Floats:
        member = self.members[0]
        found: Floats = logits.float().cpu().numpy()
        if (member.centre, member.spread) != (0.0, 1.0):
            found = found * np.float32(member.spread) + np.float32(member.centre)
        return found

    def _shape(self, logits: Floats) -> tuple[int, ...]:
        if not self.tag:
            return (logits.shape[-1],)
        return (int(self._examples.lengths("text").max()), logits.shape[-1])

    def _constant(self, shape: tuple[int, ...]) -> Floats:
        assert self.constant is not None
        if self.tag:
            shape = (*shape, int(self._examples.lengths("text").max()))
        return np.broadcast_to(self.constant, (*shape, len(self.constant))).copy()


def majority(examples: Examples, targets: Targets, rows: Rows, device: torch.device) -> Fitted:
    """The model that does not look at the pair: it gives each label's frequency, or the mean.

    Args:
        examples: the features.
        targets: the labels.
        rows: that are counted.
        device: kept with the model, as for all others.
    """
    counted = targets.take(rows)
    weight = counted.weights().astype(np.float64)
    values = counted.values
    if targets.task == "regress":
        constant = np.array([np.average(values, weights=weight)])
    elif targets.task == "multilabel":
        share = (np.average(values, axis=0, weights=weight) * len(rows) + 0.5) / (len(rows) + 1)
        constant = np.log(share / (1 - share))
    else:
        if targets.task == "tag":
            weight = np.repeat(weight[:, None], values.shape[1], axis=1)[values != IGNORED]
            values = values[values != IGNORED]
        counts = np.bincount(values.astype(np.int64), weights=weight, minlength=targets.outputs)
        constant = np.log((counts + 0.5) / (counts.sum() + 0.5 * targets.outputs))
    info = FitInfo(variant="the labels' shares" if targets.task != "regress" else "the mean")
    fitted = Fitted(
        "majority",
        [],
        examples,
        device,
        info,
        rows,
        np.zeros(0, np.float32),
        constant.astype(np.float32),
        targets.per_token,
    )
    fitted.tuning_logits = fitted.logits(rows)
    return fitted
