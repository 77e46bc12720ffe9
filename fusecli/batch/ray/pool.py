"""The work of a run on Ray's workers: they run `worker.py`; this process writes the journal and
the results.

A worker is an actor: a process that holds the fusion. It receives several pairs at once and
returns their rows through Ray's object store. This process takes the rows in the order of the
pairs, and only this process writes. If a worker or its machine ends, the worker is replaced and
another worker does its pairs. Each result is written once.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from threading import Event
from typing import Any

from fusecli._version import __version__
from fusecli.batch.options import BatchOptions
from fusecli.batch.ray.actor import Worker
from fusecli.batch.ray.cluster import connected, refuse_ended, worker_count
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.store.result import Result
from fusecli.errors import FuseError, RayError, shortened
from fusecli.features.formats.base import one_line
from fusecli.pairs.open import Pair
from fusecli.pairs.stamps import FileStamps

_QUEUED = 2  # chunks that are assigned to a worker: the one it works on, and the next
_AHEAD = 3  # chunks a worker that may be finished before it is their turn
_MOST_PAIRS = 256  # of a chunk: sending it costs about a millisecond
_FIRST_PAIRS = 8
_MOST_BYTES = 16 << 20
_LEAST_BYTES = 1 << 20
_TRIES = 3  # a pair that ended so many workers is not tried again
_MOST_LOSSES = 20  # workers lost one after the other; finding one bad pair of a chunk takes 12
_PATIENCE = 10.0  # seconds without any result until the user is told
_STEP = 0.25  # seconds of waiting for Ray before `stop` is called again
_LOST = object()

Tell = Callable[[str], None]
Stop = Callable[[], bool]


@dataclass(eq=False)
class _Chunk:
    """Pairs that are sent to a worker together.

    Attributes:
        tries: how many workers have ended while they worked on it.
        slot: number of the worker that it is, or was, assigned to.
        results: of the pairs, when they are done.
    """

    pairs: list[Pair]
    tries: int = 0
    slot: int = -1
    results: list[Result] | None = None


class RayWorkers:
    """Results in the order of the pairs, made by Ray's workers.

    Ray is only called from a separate thread. A signal then raises an exception in Python code of
    the main thread, and never inside Ray, where it would end in a SystemError.

    Args:
        options: of the run.
        spec: what is computed.
        pairs: to be fused, in order.
        tell: receives notes and warnings.
    """

    def __init__(
        self, options: BatchOptions, spec: FusionSpec, pairs: Iterator[Pair], tell: Tell
    ) -> None:
        self._stop = Event()
        self._thread = ThreadPoolExecutor(1, "ray")
        self._results = worked_on_ray(options, spec, pairs, tell, self._stop.is_set)

    def __iter__(self) -> Iterator[list[Result]]:
        """Results as they come; nothing, now and then, while workers are waited for."""
        while (results := self._thread.submit(next, self._results, None).result()) is not None:
            yield results

    def drain(self) -> Iterator[list[Result]]:
        """Stop, and yield the results that are done already, in the order of the pairs."""
        self._stop.set()
        return iter(self)

    def close(self) -> None:
        """Stop, and end Ray where it was started here."""
        self._stop.set()
        try:
            self._thread.submit(self._results.close).result()
        finally:
            self._thread.shutdown()


def worked_on_ray(
    o: BatchOptions,
    spec: FusionSpec,
    todo: Iterator[Pair],
    tell: Tell,
    stop: Stop = lambda: False,
) -> Generator[list[Result], None, None]:
    """Results in the order of the pairs, made by Ray's workers.

    Args:
        o: the options.
        spec: what is computed.
        todo: the pairs.
        tell: receives notes and warnings.
        stop: asked again and again; what is done already comes, and no more.

    Returns:
        Results as they come; nothing, now and then, while workers are waited for.

    Raises:
        FuseError: Ray cannot be reached, or its workers cannot start or end again and again.
    """
    assert o.ray is not None
    first = list(islice(todo, 1))
    if not first:
        return  # Ray takes seconds to start
    with connected(o.ray, o) as ray:
        try:
            pool = Pool(ray, o, spec, tell, stop)
            try:
                yield from pool.run(chain(first, todo))
            finally:
                pool.close()
        except ray.exceptions.RayError as error:
            raise RayError(f"--ray: Ray does not serve any more: {_reason(error)}") from None


class Pool:
    """The workers, and the chunks that wait for them or are assigned to them.

    Args:
        ray: the library, connected.
        o: the options.
        spec: what is computed.
        tell: receives notes and warnings.
        stop: asked again and again.
    """

    def __init__(
        self,
        ray: Any,
        o: BatchOptions,
        spec: FusionSpec,
        tell: Tell,
        stop: Stop = lambda: False,
    ) -> None:
        assert o.ray is not None
        self._ray, self._spec, self._tell, self._stop = ray, spec, tell, stop
        size = worker_count(o, ray.cluster_resources())
        self._kind = ray.remote(num_cpus=1, num_gpus=o.ray.gpus_per_worker)(Worker)
        self._most = _AHEAD * size
        self._budget = min(_MOST_BYTES, max(_LEAST_BYTES, o.max_memory // self._most))
        self._order: list[_Chunk] = []  # all chunks, in the order of the pairs
        self._waiting: deque[_Chunk] = deque()  # those that are assigned to no worker
        # Keys are Ray's references: of results, with their chunk; of workers that start, with
        # their number.
        self._in_hand: dict[Any, _Chunk] = {}
        self._beginning: dict[Any, int] = {}
        self._actors: list[Any] = [None] * size
        self._serving: set[int] = set()
        self._losses = 0
        self._patient = True
        for slot in range(size):
            self._start(slot)

    def run(self, todo: Iterator[Pair]) -> Iterator[list[Result]]:
        """Results in the order of the pairs; nothing, now and then, while workers are waited for.

        Raises:
            FuseError: the workers cannot start, or end again and again.
        """
        size = _FIRST_PAIRS
        while True:
            while len(self._order) < self._most and (pairs := list(islice(todo, size))):
                self._order.append(_Chunk(pairs))
                self._waiting.append(self._order[-1])
            if not self._order:
                return
            results = self._order[0].results
            if results is None:
                if self._stop():
                    return
                self._hand_out()
                if not self._wait():
                    yield []
                continue
            first = self._order.pop(0)
            if len(results) < len(first.pairs):  # they are larger than expected
                self._put_back([_Chunk(first.pairs[len(results) :])], 0)
            taken = sum(result.nbytes for result in results)
            size = max(1, min(_MOST_PAIRS, self._budget // max(1, taken // len(results))))
            yield results

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)

    def _start(self, slot: int) -> None:
        self._actors[slot] = self._kind.remote(self._spec, os.getcwd(), __version__)
        self._beginning[self._actors[slot].begin.remote()] = slot

    def _put_back(self, chunks: list[_Chunk], place: int) -> None:
        """The chunks to do next, each with its position among all chunks."""
        self._order[place:place] = chunks
        self._waiting.extendleft(reversed(chunks))

    def _hand_out(self) -> None:
        """Send chunks to the workers that are ready for more."""
        loads = dict.fromkeys(self._serving, 0)
        for chunk in self._in_hand.values():
            loads[chunk.slot] += 1
        while self._waiting and loads:
            slot = min(loads, key=loads.__getitem__)
            if loads[slot] == _QUEUED:
                return
            loads[slot] += 1
            chunk = self._waiting.popleft()
            chunk.slot = slot
            self._in_hand[self._actors[slot].work.remote(chunk.pairs, self._budget)] = chunk

    def _wait(self) -> bool:
        """Wait until a worker is ready or has finished a chunk; false if that takes too long."""
        under_way = [*self._in_hand, *self._beginning]
        ready: list[Any] = []
        for _ in range(int(_PATIENCE / _STEP)):
            ready, _ = self._ray.wait(under_way, num_returns=1, timeout=_STEP)
            if ready or self._stop():
                break
        if self._stop() and not ready:
            return True
        for reference in ready:
            slot = self._beginning.pop(reference, None)
            if slot is not None:
                if self._got(reference, slot) is not _LOST:
                    self._serving.add(slot)
                continue
            chunk = self._in_hand.pop(reference)
            made = self._got(reference, chunk.slot)
            if made is _LOST:
                self._again(chunk)
                continue
            self._losses = 0
            pairs = zip(chunk.pairs, made, strict=False)
            chunk.results = [Result(pair, *parts) for pair, parts in pairs]
        if not ready:
            refuse_ended(self._ray)
        if not ready and self._patient:
            self._patient = False
            free = self._ray.available_resources()
            self._tell(
                f"note: nothing came from Ray's workers for {_PATIENCE:.0f} s; free in the cluster "
                f"are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
            )
        return bool(ready)

    def _got(self, reference: Any, slot: int) -> Any:
        """The value that a worker returned, or _LOST if the worker is gone."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, FuseError):
                raise cause from None
            raise RayError(
                f"a Ray worker failed: {type(cause).__name__}: {one_line(cause)}"
            ) from None
        except errors.RayError as error:  # it has ended, or its results were lost with its machine
            self._replace(slot, error)
            return _LOST

    def _replace(self, slot: int, error: Exception) -> None:
        """Start another worker; chunks that the lost one had not begun wait again."""
        self._losses += 1
        if self._losses == _MOST_LOSSES:
            raise RayError(
                f"Ray's workers ended {_MOST_LOSSES} times one after the other, without a result: "
                f"{_reason(error)}"
            )
        self._tell(f"warning: a Ray worker was lost, another does its pairs: {_reason(error)}")
        held = [reference for reference, chunk in self._in_hand.items() if chunk.slot == slot]
        self._waiting.extendleft(self._in_hand.pop(reference) for reference in reversed(held))
        with contextlib.suppress(Exception):
            self._ray.kill(self._actors[slot])
        self._serving.discard(slot)
        self._start(slot)

    def _again(self, chunk: _Chunk) -> None:
        """Do a chunk once more, or find the pair in it that ends every worker."""
        chunk.tries += 1
        if chunk.tries == _TRIES:
            (pair,) = chunk.pairs
            why = f"{pair.image.file}: ended {_TRIES} Ray workers that read or fused it"
            chunk.results = [Result(pair, FileStamps().of(pair), error=why)]
        elif chunk.tries == _TRIES - 1 and len(chunk.pairs) > 1:
            half = len(chunk.pairs) // 2
            halves = (chunk.pairs[:half], chunk.pairs[half:])
            place = self._order.index(chunk)
            del self._order[place]
            self._put_back([_Chunk(pairs, chunk.tries - 1) for pairs in halves], place)
        else:
            self._waiting.appendleft(chunk)


def _reason(error: Exception) -> str:
    """The sentence of Ray's long message that says what happened."""
    text = " ".join(str(error).split())
    found = re.search(r"Worker exit type: \w+|node.{0,80}(?:dead|died|terminated)", text)
    return found[0] if found else shortened(text, 200)
