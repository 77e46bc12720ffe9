"""`fusecli train` from files, against the training loop that people write."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fusecli.bench.processes import high_water_mb
from fusecli.features.pair_inputs import ReadOptions
from fusecli.pairs.open import Pair, PairOptions, open_pairs
from fusecli.pairs.reader import PairFeatures, PairReader
from fusecli.training.examples import Examples, load_examples
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.split import Split
from fusecli.training.targets import Targets

WIDTH, PATCHES, FEWEST, MOST = 384, 49, 4, 16
_EPOCHS = 2  # that a rate is measured over
# The same model, batches and optimizer; one line of output: pairs a second.
PLAIN_LOOP = """
import os, sys, time
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from fusecli.training.head import FusionHead

folder, workers, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
labels = torch.from_numpy(np.load(os.path.join(folder, "labels.npy")))
names = sorted(os.listdir(os.path.join(folder, "images")))


class Pairs(Dataset):
    def __len__(self):
        return len(names)

    def __getitem__(self, i):
        places = (os.path.join(folder, side, names[i]) for side in ("images", "texts"))
        image, text = map(np.load, places)
        return torch.from_numpy(image), torch.from_numpy(text), labels[i]


def collate(items):
    images, texts, wanted = zip(*items)
    lengths = torch.tensor([len(t) for t in texts])
    padded = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return torch.stack(images), padded, mask, torch.stack(wanted)


class Model(nn.Module):
    def __init__(self, width, D=128, H=4):
        super().__init__()
        self.text_proj, self.image_proj = nn.Linear(width, D), nn.Linear(width, D)
        self.attention = nn.MultiheadAttention(D, H, batch_first=True)
        self.norm = nn.LayerNorm(D)
        self.head = FusionHead(D, D, 2, pooled=True)
        self.drop = nn.Dropout1d(0.4)  # whole channels, one draw for all tokens of a pair
        self.out = nn.Dropout(0.3)

    def forward(self, image, text, mask):
        image = self.drop(image.transpose(1, 2)).transpose(1, 2)
        text = self.drop(text.transpose(1, 2)).transpose(1, 2)
        q, i = self.text_proj(text), self.image_proj(image)
        real = torch.rand(image.shape[:2]) >= 0.2
        fused, _ = self.attention(q, i, i, key_padding_mask=~real, need_weights=False)
        return self.head(self.out(self.norm(fused + q)), q, mask)


loader = DataLoader(Pairs(), 32, shuffle=True, collate_fn=collate, num_workers=workers)
model = Model(%(width)d)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.05)
loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
began = time.perf_counter()
for _ in range(epochs):
    for image, text, mask, wanted in loader:
        loss = loss_of(model(image, text, mask), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
print(epochs * len(names) / (time.perf_counter() - began))
"""


@dataclass(frozen=True)
class TrainResult:
    """What was measured.

    Attributes:
        pairs: how many, image `[49, 384]` and text `[4..16, 384]`, in .npy files.
        plain_rates: pairs a second of an epoch of the plain loop, by workers of its DataLoader.
        read_seconds: to read all pairs once, before the first epoch.
        rate: pairs a second of an epoch of one model, on one thread.
        side_by_side_rate: of both models together, where two are trained side by side.
        ratio: `side_by_side_rate` to the best rate of the plain loop.
        table_seconds: from files to all models of the table; None where not wanted.
        resident_mb: the most this process held; None where there is no /proc.
    """

    pairs: int
    plain_rates: dict[int, float]
    read_seconds: float
    rate: float
    side_by_side_rate: float
    ratio: float
    table_seconds: float | None
    resident_mb: float | None


class _Files:
    """Pairs of files as `load_examples` reads them."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs, self._reader = pairs, PairReader(ReadOptions())
        self.ids: Sequence[str] = tuple(pair.id for pair in pairs)

    def read(self, row: int) -> PairFeatures:
        return self._reader.read(self._pairs[row])


def bench_train(
    pairs: int, table: bool, max_memory: int, told: Callable[[str], None]
) -> TrainResult:
    """Time epochs on files in the temporary folder.

    Args:
        pairs: how many; 0.09 MB each.
        table: also train everything that `fusecli train` trains.
        max_memory: bytes of features that are held.
        told: is told what is being measured.

    Raises:
        FuseError: the plain loop failed, or the folder cannot be written.
    """
    import os

    with tempfile.TemporaryDirectory(prefix="fusecli-bench-") as folder:
        told(f"writing {pairs:,} pairs")
        labels = write_pairs(Path(folder), pairs)
        plain = {}
        for workers in (0, 2):
            told(f"plain loop, {workers} workers")
            plain[workers] = _plain_rate(folder, workers)
        told("reading")
        began = time.perf_counter()
        source = open_pairs(PairOptions(f"{folder}/images", f"{folder}/texts"))
        examples = load_examples(_Files(list(source)), max_memory)
        read_seconds = time.perf_counter() - began
        targets = Targets("classify", ("a", "b"), labels)
        alone, side_by_side = _own_rates(examples, targets, folder, told)
        table_seconds = None
        if table:
            told("all models of the table")
            table_seconds = read_seconds + _table_seconds(examples, targets, folder)
    return TrainResult(
        pairs,
        plain,
        read_seconds,
        alone,
        side_by_side,
        side_by_side / max(plain.values()),
        table_seconds,
        high_water_mb(os.getpid()),
    )


def _own_rates(
    examples: Examples, targets: Targets, folder: str, told: Callable[[str], None]
) -> tuple[float, float]:
    """Pairs a second of one attention model, and of two side by side together."""
    import torch

    from fusecli.training.candidates import make_candidates
    from fusecli.training.checkpoint import Checkpoints
    from fusecli.training.inference import Setting
    from fusecli.training.loop import Job, Trained, train_model
    from fusecli.training.side_by_side import one_thread_a_model, run_side_by_side

    rows, none = np.arange(examples.n), np.zeros(0, np.int64)
    options = TrainOptions(
        PairOptions(), LabelOptions(), folder, device="cpu", epochs=_EPOCHS, method="attention"
    )
    candidate = make_candidates(examples, targets, options, examples.n)[0]
    statistics = candidate.spec.statistics(examples, rows)
    setting = Setting(examples, targets, torch.device("cpu"), False, rows)

    def train(seed: int) -> Trained:
        torch.set_num_threads(1)
        build = partial(candidate.spec.build, *statistics)
        job = Job("bench", build, candidate.recipe, rows, none, seed)
        return train_model(job, setting, Checkpoints(None))

    with one_thread_a_model():
        told("one model")
        alone = _seconds(partial(train, 0))
        told("two models side by side")
        calls = [partial(train, 1), partial(train, 2)]
        both = _seconds(lambda: run_side_by_side(calls, 2, setting.stop))
    trained = _EPOCHS * examples.n
    return trained / alone, 2 * trained / both


def _table_seconds(examples: Examples, targets: Targets, folder: str) -> float:
    """Training of everything that `fusecli train` trains; a tenth of the pairs is validation."""
    from fusecli.training.fit import fit
    from fusecli.training.fit_progress import Quiet

    rows = np.arange(examples.n)
    learnt = int(0.9 * examples.n)
    split = Split(rows[:learnt], rows[learnt:], np.zeros(0, np.int64), rows)
    wanted = TrainOptions(PairOptions(), LabelOptions(), folder, device="cpu")
    return _seconds(lambda: fit(examples, targets, split, wanted, Quiet()))


def write_pairs(folder: Path, pairs: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Pairs of random features in files; what they hold has no part in the time they take.

    Returns:
        int64 `[pairs]`, their labels, which lie in `labels.npy` too.
    """
    rng = np.random.default_rng(0)
    for side in ("images", "texts"):
        (folder / side).mkdir()
    for number in range(pairs):
        tokens = int(rng.integers(FEWEST, MOST + 1))
        image = rng.standard_normal((PATCHES, WIDTH), dtype=np.float32)
        text = rng.standard_normal((tokens, WIDTH), dtype=np.float32)
        np.save(folder / "images" / f"{number:07d}.npy", image)
        np.save(folder / "texts" / f"{number:07d}.npy", text)
    labels = rng.integers(2, size=pairs)
    np.save(folder / "labels.npy", labels)
    return labels


def _plain_rate(folder: str, workers: int) -> float:
    from fusecli.errors import FuseError

    script = PLAIN_LOOP % {"width": WIDTH}
    command = [sys.executable, "-c", script, folder, str(workers), str(_EPOCHS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FuseError(f"the plain loop stopped with exit code {done.returncode}: {last[0]}")
    return float(done.stdout)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
