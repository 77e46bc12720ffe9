"""Notes of a run: told at once, and kept for its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fusecli.training.fit_progress import FitProgress

Tell = Callable[[str], None]


class TrainProgress(FitProgress, Protocol):
    """What a run tells while it goes on."""

    def reading(self, done: int, total: int) -> None:
        """So many pairs of so many have been read."""


class Notes:
    """Hands notes on, and keeps them for the report."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.kept: list[str] = []

    def __call__(self, line: str) -> None:
        self.kept.append(line.removeprefix("note: "))
        self._tell(line)


class NotedProgress:
    """A `FitProgress` that keeps what is noted."""

    def __init__(self, inner: TrainProgress, notes: Notes) -> None:
        self._inner, self._notes = inner, notes
        self.plan, self.epoch, self.done = inner.plan, inner.epoch, inner.done
        self.silent = False  # what the folds choose is said in the report, fold by fold

    def note(self, text: str) -> None:
        """Keep it for the report, and tell it."""
        if not self.silent:
            self._notes(f"note: {text}")
