"""The training loop of one model: batches, loss, AdamW, schedule, early stopping."""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own short name

from fusecli.training.checkpoint import Checkpoints, EpochRecord, JobState
from fusecli.training.examples import Examples, Rows
from fusecli.training.head import Noise
from fusecli.training.model import PairModel, TorchBatch
from fusecli.training.score import score_of
from fusecli.training.targets import IGNORED, Targets

Floats = NDArray[np.float32]

_BUILDING = threading.Lock()  # initial weights are drawn from torch's one global generator
_EVALUATED_AT_ONCE = 256
_BUCKET_BATCHES = 16  # batches that are sorted by length together
_CHECKPOINT_SECONDS = 10.0
_EPSILON = 1e-8  # of AdamW
_EVALUATIONS = 10  # of a run without early stopping


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        epochs: length of the schedule.
        batch_size: pairs a step.
        lr: highest learning rate, after the warm-up.
        weight_decay: of matrices.
        channels: dropout of input channels.
        patches: dropout of image tokens.
        head: dropout in the head.
        smoothing: of the labels.
        patience: epochs without a better validation score; None: the schedule is finished.
    """

    epochs: int
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    channels: float = 0.4
    patches: float = 0.2
    head: float = 0.3
    smoothing: float = 0.1
    patience: int | None = 10


class Stopped(Exception):  # noqa: N818 - not an error
    """The run is being stopped; the job can go on from its last checkpoint."""


class EpochHook(Protocol):
    """Is told after every epoch, from the thread that trains."""

    def __call__(self, key: str, epochs: int, record: EpochRecord) -> None: ...


@dataclass(frozen=True)
class Job:
    """One model to be trained.

    Attributes:
        key: unique in the run; the random numbers follow from it and the seed.
        build: makes the model; called with the random state of the job.
        recipe: how it is trained.
        train: rows that are learnt from.
        held_out: rows that the score is computed on; may be empty.
        stop: epochs after which training ends although the schedule is longer; None: at its end.
        keep_all: keep the held-out logits of every evaluated epoch, and the last weights,
            instead of stopping early and keeping the best.
        seed: of this model.
    """

    key: str
    build: Callable[[], PairModel]
    recipe: Recipe
    train: Rows
    held_out: Rows
    seed: int
    stop: int | None = None
    keep_all: bool = False


@dataclass
class Trained:
    """A trained model's weights and how it came there.

    Attributes:
        weights: every parameter and buffer in one float32 vector, see `pack_state`.
        history: of the epochs.
        best_epoch: whose weights these are.
        held_out: logits of the held-out rows by epoch; only the best epoch's without `keep_all`.
    """

    weights: Floats
    history: list[EpochRecord]
    best_epoch: int
    held_out: dict[int, Floats] = field(default_factory=dict)


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


def default_epochs(n: int) -> int:
    """50 epochs at 300 pairs, 20 at 3,000, 6 at 30,000 (measured, see docs/training.md)."""
    wanted: float = 50 * math.pow(300 / max(n, 1), 0.46)
    return max(3, min(100, round(wanted)))


def train_model(
    job: Job, setting: Setting, checkpoints: Checkpoints, on_epoch: EpochHook | None = None
) -> Trained:
    """Train one model, or go on where an earlier run was stopped.

    The random numbers of an epoch follow from the job and the epoch alone, so a run that goes on
    computes what an uninterrupted one computes.

    Args:
        job: what.
        setting: on what.
        checkpoints: where the state is kept.
        on_epoch: is told after every epoch.
    """
    model = build_model(job.build, job.seed, job.key).to(setting.device)
    optimizer = FlatAdamW(model, job.recipe)
    state = checkpoints.load(job.key)
    if state is None:
        state = JobState.new()
    else:
        if not state.done:
            optimizer.restore(state)
        if on_epoch is not None:
            for record in state.history:
                on_epoch(job.key, job.recipe.epochs, record)
    last = job.recipe.epochs if job.stop is None else job.stop
    saved = time.monotonic()
    while not state.done:
        try:
            record = _run_epoch(job, setting, model, optimizer, state, last)
        except Stopped:
            if state.parameters is not None:
                checkpoints.save(job.key, state)
            raise
        if on_epoch is not None:
            on_epoch(job.key, job.recipe.epochs, record)
        if state.done or time.monotonic() - saved > _CHECKPOINT_SECONDS:
            optimizer.store(state)
            checkpoints.save(job.key, state)
            saved = time.monotonic()
    assert state.best is not None
    return Trained(state.best, state.history, state.best_epoch, state.held_out)


def _run_epoch(
    job: Job,
    setting: Setting,
    model: PairModel,
    optimizer: FlatAdamW,
    state: JobState,
    last: int,
) -> EpochRecord:
    """One epoch and what follows from its score; changes the state."""
    epoch = state.epoch + 1
    loss = _train_epoch(job, setting, model, optimizer, epoch)
    score, name = None, ""
    every = max(1, last // _EVALUATIONS) if job.keep_all else 1
    if len(job.held_out) and (epoch % every == 0 or epoch == last):
        logits = predict_held_out(model, setting, job)
        score, name = score_of(logits, setting.targets, job.held_out)
        if job.keep_all:
            state.held_out[epoch] = logits
        elif state.best is None or score > state.best_score:
            state.held_out = {epoch: logits}
    record = EpochRecord(epoch, loss, score, name)
    state.history.append(record)
    state.epoch = epoch
    if job.keep_all or score is None:
        if epoch == last:
            state.best, state.best_epoch = pack_state(model), epoch
    elif state.best is None or score > state.best_score:
        state.best, state.best_epoch, state.best_score = pack_state(model), epoch, score
    patience = job.recipe.patience
    waited = not job.keep_all and patience is not None and epoch - state.best_epoch >= patience
    state.done = epoch == last or (score is not None and waited)
    return record


def _train_epoch(
    job: Job, setting: Setting, model: PairModel, optimizer: FlatAdamW, epoch: int
) -> float:
    recipe, examples = job.recipe, setting.examples
    generator = torch.Generator(setting.device).manual_seed(mixed_seed(job.seed, job.key, epoch))
    noise = Noise(generator, recipe.channels, recipe.patches, recipe.head)
    order = np.random.default_rng([job.seed, zlib.crc32(job.key.encode()), epoch])
    batches = make_batches(examples, job.train, recipe.batch_size, order)
    steps = recipe.epochs * len(batches)
    total = torch.zeros((), device=setting.device)
    for number, rows in enumerate(batches):
        if setting.stop.is_set():
            raise Stopped
        step = (epoch - 1) * len(batches) + number
        loss = _batch_loss(model, setting, rows, recipe, noise, order)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(learning_rate(step, steps, recipe.lr))
        total += loss.detach()
    return float(total) / len(batches)


def _batch_loss(
    model: PairModel,
    setting: Setting,
    rows: Rows,
    recipe: Recipe,
    noise: Noise,
    order: np.random.Generator,
) -> Tensor:
    texts, images = rows, rows
    if setting.targets.task == "match":
        others = negatives(rows, setting, order)
        texts, images = np.concatenate([rows, rows]), np.concatenate([rows, others])
    batch = TorchBatch.of(setting.examples.batch(texts, images, model.pooled), setting.device)
    with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.autocast):
        logits = model(batch, noise)
    return loss_of(logits.float(), setting.targets, rows, recipe.smoothing)


def negatives(rows: Rows, setting: Setting, order: np.random.Generator) -> Rows:
    """For each pair another of these pairs whose image and group are others, where there is one."""
    content = setting.examples.content("image")[rows]
    groups = setting.groups[rows]
    other = (content[:, None] != content) & (groups[:, None] != groups)
    draw = np.where(other, order.random(other.shape), -1.0)
    chosen: Rows = rows[draw.argmax(axis=1)]
    return chosen


def make_batches(
    examples: Examples, rows: Rows, size: int, order: np.random.Generator
) -> list[Rows]:
    """Rows in random batches of nearly one size, pairs of like length together.

    Within 16 batches' worth of shuffled rows the rows are sorted by length, so that little is
    padded; then the batches are shuffled.
    """
    shuffled = order.permutation(rows)
    text, image = examples.lengths("text")[shuffled], examples.lengths("image")[shuffled]
    if text.min() != text.max() or image.min() != image.max():
        sort = np.lexsort((text, image, np.arange(len(rows)) // (_BUCKET_BATCHES * size)))
        shuffled = shuffled[sort]
    batches = np.array_split(shuffled, max(1, math.ceil(len(rows) / size)))
    return [batches[i] for i in order.permutation(len(batches))]


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Linear warm-up over 5 % of the steps, then half a cosine down to 0."""
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class FlatAdamW:
    """AdamW (arXiv:1711.05101) on all parameters as one vector, with clipping to norm 1.

    A model of this size has some twenty small tensors, and a step on one vector costs a tenth of
    a step on twenty.

    Args:
        model: its parameters become views of the vector, matrices first.
        recipe: gives the weight decay, which is of matrices only.
    """

    betas = (0.9, 0.99)

    def __init__(self, model: PairModel, recipe: Recipe) -> None:
        parameters = sorted(model.parameters(), key=lambda p: p.dim() < 2)  # keeps their order
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.grad = torch.zeros_like(self.flat)
        start = 0
        for p in parameters:
            stop = start + p.numel()
            p.data = self.flat[start:stop].view_as(p)
            p.grad = self.grad[start:stop].view_as(p)
            start = stop
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.count = 0
        matrices = sum(p.numel() for p in parameters if p.dim() >= 2)
        self._parts = [
            (slice(None, matrices), recipe.weight_decay),
            (slice(matrices, None), 0.0),
        ]
        self._fused = _has_fused_adamw(self.flat.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Clip, update, and set the gradient to zero."""
        self.count += 1
        norm = torch.linalg.vector_norm(self.grad)
        self.grad.mul_(torch.clamp(1 / (norm + 1e-6), max=1.0))
        for part, decay in self._parts:
            vectors = (self.flat[part], self.grad[part], self.first[part], self.second[part])
            if self._fused:
                _fused_adamw(*vectors, self.count, lr, self.betas, decay)
            else:
                self._plain_adamw(*vectors, lr, decay)
        self.grad.zero_()

    def _plain_adamw(
        self, flat: Tensor, grad: Tensor, first: Tensor, second: Tensor, lr: float, decay: float
    ) -> None:
        beta1, beta2 = self.betas
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = second.sqrt().div_(math.sqrt(1 - beta2**self.count)).add_(_EPSILON)
        flat.mul_(1 - lr * decay)
        flat.addcdiv_(first, denominator, value=-lr / (1 - beta1**self.count))

    def store(self, state: JobState) -> None:
        """Copy parameters and moments into a state."""
        state.parameters, state.first, state.second = (
            t.cpu().numpy().copy() for t in (self.flat, self.first, self.second)
        )
        state.steps = self.count

    @torch.no_grad()
    def restore(self, state: JobState) -> None:
        """Take parameters and moments from a state."""
        for own, array in (
            (self.flat, state.parameters),
            (self.first, state.first),
            (self.second, state.second),
        ):
            assert array is not None
            own.copy_(torch.from_numpy(array))
        self.count = state.steps


def _fused_adamw(
    flat: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    count: int,
    lr: float,
    betas: tuple[float, float],
    decay: float,
) -> None:
    """The kernel of `torch.optim.AdamW(fused=True)`: one pass over the memory instead of nine.

    It is called directly because the first step of any `torch.optim` optimizer imports torch's
    compiler, which takes two seconds.
    """
    torch._fused_adamw_(
        [flat],
        [grad],
        [first],
        [second],
        [],
        [torch.tensor(float(count), device=flat.device)],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay,
        eps=_EPSILON,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


def _has_fused_adamw(device: torch.device) -> bool:
    """Whether this torch has the kernel for this device; torch 2.2 has none for the CPU."""
    try:
        flat, grad, first, second = torch.ones(4, 1, device=device)
        _fused_adamw(flat, grad, first, second, 1, 0.0, (0.9, 0.99), 0.0)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def mixed_seed(seed: int, key: str, epoch: int = 0) -> int:
    """One number from a seed, a job and an epoch."""
    return zlib.crc32(f"{seed} {key} {epoch}".encode()) + (seed << 32)


def build_model(build: Callable[[], PairModel], seed: int, key: str) -> PairModel:
    """A model with initial weights that follow from the seed; torch's random state is kept."""
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(seed, key))
        return build()


def pack_state(model: PairModel) -> Floats:
    """The parameters of a model as one float32 vector."""
    with torch.no_grad():
        flat = torch.cat([p.reshape(-1) for p in model.parameters()])
    packed: Floats = flat.float().cpu().numpy().copy()
    return packed


def unpack_state(model: PairModel, weights: Floats) -> PairModel:
    """Put the weights of `pack_state` into a model of the same kind."""
    start = 0
    with torch.no_grad():
        for p in model.parameters():
            stop = start + p.numel()
            p.copy_(torch.from_numpy(weights[start:stop]).view_as(p))
            start = stop
    return model


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


def predict_held_out(model: PairModel, setting: Setting, job: Job) -> Floats:
    """Logits of a job's held-out rows; for `match` also of as many wrong pairs, behind them."""
    rows = job.held_out
    if setting.targets.task != "match":
        return predict(model, setting, rows)
    wrong = negatives(rows, setting, np.random.default_rng(job.seed))
    return predict(model, setting, np.concatenate([rows, rows]), np.concatenate([rows, wrong]))
