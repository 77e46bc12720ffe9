"""The training loop of one model: batches, loss, AdamW, schedule, early stopping."""

from __future__ import annotations

import json
import math
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusecli.errors import FuseError
from fusecli.training.checkpoint import Checkpoints, EpochRecord, JobState
from fusecli.training.examples import Examples
from fusecli.training.head import Noise
from fusecli.training.inference import Setting, negatives, predict_held_out
from fusecli.training.loss import loss_of
from fusecli.training.model import PairModel, TorchBatch
from fusecli.training.optimizer import FlatAdamW, learning_rate
from fusecli.training.score import score_of
from fusecli.training.side_index import Rows

Floats = NDArray[np.float32]

_BUILDING = threading.Lock()  # initial weights are drawn from torch's one global generator
_BUCKET_BATCHES = 16  # batches that are sorted by length together
_CHECKPOINT_SECONDS = 10.0
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
        model: what `build` makes, as text; see `made_of`.
    """

    key: str
    build: Callable[[], PairModel]
    recipe: Recipe
    train: Rows
    held_out: Rows
    seed: int
    stop: int | None = None
    keep_all: bool = False
    model: str = ""

    def made_of(self) -> str:
        """What the result follows from beside the data and the versions of the run, as text.

        Parts of it are chosen by this program and stand in no option, such as the learning rate:
        a state of the same job that was made with others must not be gone on with.
        """
        rows = [zlib.crc32(part.astype("<i8").tobytes()) for part in (self.train, self.held_out)]
        parts = [self.model, asdict(self.recipe), self.seed, self.stop, self.keep_all, rows]
        return json.dumps(parts)


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


def default_epochs(n: int) -> int:
    """50 epochs at 300 pairs, 20 at 3,000, 6 at 30,000 (measured on small synthetic tasks)."""
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
    optimizer = FlatAdamW(model, job.recipe.weight_decay)
    made_of = job.made_of()
    state = checkpoints.load(job.key, made_of)
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
                checkpoints.save(job.key, state, made_of)
            raise
        if on_epoch is not None:
            on_epoch(job.key, job.recipe.epochs, record)
        if state.done or time.monotonic() - saved > _CHECKPOINT_SECONDS:
            optimizer.store(state)
            checkpoints.save(job.key, state, made_of)
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
        logits = predict_held_out(model, setting, job.held_out, job.seed)
        _refuse_diverged(job, epoch, bool(np.isfinite(logits).all()))
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


def _refuse_diverged(job: Job, epoch: int, finite: bool) -> None:
    if not finite:
        raise FuseError(
            f"training {job.key}: the numbers became infinite in epoch {epoch}: say a smaller --lr "
            f"than {job.recipe.lr:g}, and --force to begin anew"
        )


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
    mean = float(total) / len(batches)
    _refuse_diverged(job, epoch, math.isfinite(mean))
    return mean


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
