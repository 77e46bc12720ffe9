"""What a training run tells on stderr while it goes on: a status line, or a plain line at times."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from fusecli.cli.progress import Progress

if TYPE_CHECKING:
    from fusecli.training.checkpoint import EpochRecord

_PLAIN_EVERY = 30.0  # seconds between lines where stderr is no terminal
_LIVE_EVERY = 0.2
_WIDEST = 110


class TrainingProgress(Progress):
    """Reading with a bar, then which model is trained, its epoch, loss, score and the time left.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__("reading", quiet)
        self._silent = quiet
        self._planned, self._finished = 0, 0
        self._before, self._in_this_fit = 0, 0
        self._under_way: dict[str, float] = {}
        self._started = self._shown = self._read_from = 0.0
        self._line = ""
        self._lock = threading.Lock()

    def reading(self, done: int, total: int) -> None:
        """So many pairs of so many have been read."""
        if not self._read_from:
            # Importing torch took a second: only the reading itself decides whether a bar appears.
            self._began = self._read_from = time.monotonic()
        self.update(done, total)

    def plan(self, jobs: int) -> None:
        """There will be so many models to train in the fit that goes on."""
        with self._lock:
            if not self._started:
                self._started = self._shown = time.monotonic()
                self._say()
            if jobs < self._in_this_fit:  # each fit of --folds counts its own models
                self._before = self._finished
            self._in_this_fit = jobs
            self._planned = self._before + jobs

    def epoch(self, model: str, epochs: int, record: EpochRecord) -> None:
        """A model has done an epoch."""
        with self._lock:
            self._under_way[model] = min(1.0, record.epoch / max(epochs, 1))
            score = "" if record.score is None else f", {record.score_name} {record.score:.3f}"
            self._show(
                f"training {model}: epoch {record.epoch} of {epochs}, loss "
                f"{record.train_loss:.3f}{score}{self._left()}"
            )

    def done(self, model: str) -> None:
        """A model is trained."""
        with self._lock:
            self._under_way.pop(model, None)
            self._finished += 1

    def note(self, text: str) -> None:
        """Something was chosen or assumed."""
        self.tell(f"note: {text}")

    def _left(self) -> str:
        share = (self._finished + sum(self._under_way.values())) / max(self._planned, 1)
        passed = time.monotonic() - self._started
        if not 0.02 < share < 1 or passed < 2:
            return ""
        left = passed / share - passed
        return f"; model {self._finished + 1} of {self._planned}, {left:,.0f} s left"

    def _show(self, line: str) -> None:
        now = time.monotonic()
        live = sys.stderr.isatty()
        if self._silent or now - self._shown < (_LIVE_EVERY if live else _PLAIN_EVERY):
            return
        self._shown = now
        if live:
            shown = line[:_WIDEST]
            print(f"\r{shown.ljust(len(self._line))}", end="", file=sys.stderr, flush=True)
            self._line = shown
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the status line away."""
        if self._line:
            print(f"\r{' ' * len(self._line)}\r", end="", file=sys.stderr, flush=True)
            self._line = ""

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()
        super().__exit__(*error)
