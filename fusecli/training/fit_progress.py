"""What a fit tells while it runs."""

from __future__ import annotations

from typing import Protocol

from fusecli.training.checkpoint import EpochRecord


class FitProgress(Protocol):
    """What a fit tells while it runs; called from several threads, one call at a time."""

    def plan(self, jobs: int) -> None:
        """There will be so many models to train; called again when refits are known."""
        ...

    def epoch(self, model: str, epochs: int, record: EpochRecord) -> None:
        """A model has done an epoch."""
        ...

    def done(self, model: str) -> None:
        """A model is trained."""
        ...

    def note(self, text: str) -> None:
        """Something was chosen or assumed."""
        ...


class Quiet:
    """A progress that says nothing."""

    def plan(self, jobs: int) -> None: ...
    def epoch(self, model: str, epochs: int, record: EpochRecord) -> None: ...
    def done(self, model: str) -> None: ...
    def note(self, text: str) -> None: ...
