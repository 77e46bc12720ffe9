"""Pairs fused by several threads of this process, in windows of about a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Event

from fusecli.batch.options import BatchOptions
from fusecli.batch.store.result import Result
from fusecli.batch.tuning import Tuning
from fusecli.batch.worker import Fuser
from fusecli.pairs.open import Pair


@dataclass
class _Window:
    """Pairs handed to a thread, and their results to come."""

    pairs: list[Pair]
    future: Future[tuple[list[Result], float]]


class ThreadWorkers:
    """Results in the order of the pairs.

    Args:
        options: the number of threads, and the memory that results may take.
        fuser: does the work, inside its `undivided`.
        pairs: to be fused, in order.
        tuning: sizes of windows.
    """

    def __init__(
        self, options: BatchOptions, fuser: Fuser, pairs: Iterator[Pair], tuning: Tuning
    ) -> None:
        self._fuser, self._pairs, self._tuning = fuser, pairs, tuning
        self._workers = options.workers or fuser.spec.workers
        self._budget = max(1, options.max_memory // (2 * self._workers + 1))
        self._size = min(tuning.first_window_pairs, tuning.window_pairs)
        self._windows: deque[_Window] = deque()
        self._stop = Event()
        self._pool = ThreadPoolExecutor(self._workers)

    def __iter__(self) -> Iterator[list[Result]]:
        """The results of one window after the other."""
        while True:
            while len(self._windows) < 2 * self._workers and (
                pairs := list(islice(self._pairs, self._size))
            ):
                self._windows.append(self._hand_out(pairs))
            if not self._windows:
                return
            results, seconds = self._windows[0].future.result()
            window = self._windows.popleft()
            if len(results) < len(window.pairs):  # they were larger or slower than expected
                self._windows.appendleft(self._hand_out(window.pairs[len(results) :]))
            self._size = self._next_size(results, seconds)
            yield results

    def drain(self) -> Iterator[list[Result]]:
        """Stop, and return the results that are finished, in the order of the pairs."""
        self._stop.set()
        for window in self._windows:
            window.future.cancel()
        while self._windows:
            window = self._windows.popleft()
            try:
                results, _ = window.future.result()
            except CancelledError:
                return
            yield results
            if len(results) < len(window.pairs):
                return

    def close(self) -> None:
        """Stop, and wait for the threads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _hand_out(self, pairs: list[Pair]) -> _Window:
        return _Window(pairs, self._pool.submit(self._work, pairs))

    def _work(self, pairs: list[Pair]) -> tuple[list[Result], float]:
        began = time.monotonic()
        results = self._fuser.work(pairs, self._budget, self._stop.is_set)
        return results, time.monotonic() - began

    def _next_size(self, results: list[Result], seconds: float) -> int:
        """How many pairs to hand over at once, from the time and memory of the last ones."""
        count = len(results)
        memory = max(1, sum(result.nbytes for result in results) // count)
        by_time = self._tuning.window_seconds / max(1e-9, seconds / count)
        return max(1, min(self._tuning.window_pairs, self._budget // memory, int(by_time)))
