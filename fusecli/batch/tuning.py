"""Amounts and intervals of a run that do not show in its results; tests pass their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusecli.features.atomic import write_all


@dataclass(frozen=True)
class Tuning:
    """How much is done at once.

    Attributes:
        window_pairs: pairs that a thread is given at once: enough that handing over costs
            nothing.
        first_window_pairs: the same until it is known how long a pair takes.
        window_seconds: a window that has taken this long ends early, so that its results reach
            the journal.
        commit_seconds, commit_bytes, commit_files: results that wait for the disk wait no
            longer, and are no more, than this.
        lock_seconds: how long a shard waits for another to write the run's record.
        large_pair_bytes: the memory of a larger pair is compared with what the machine has left.
        write_all: writes buffers to a descriptor and returns their size.
    """

    window_pairs: int = 256
    first_window_pairs: int = 8
    window_seconds: float = 1.0
    commit_seconds: float = 0.5
    commit_bytes: int = 256 << 20
    commit_files: int = 4096
    lock_seconds: float = 10.0
    large_pair_bytes: int = 256 << 20
    write_all: Callable[[int, Sequence[bytes | memoryview]], int] = write_all
