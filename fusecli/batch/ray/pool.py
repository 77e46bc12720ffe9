"""The work of a run on Ray's workers: `work.py` somewhere else, the journal and outputs here.

A worker is an actor: a process that holds the fusion. It is handed some pairs at once and gives
their rows back through Ray's object store; this process takes them in the order of the pairs and
is the only one that writes. A worker that ends, with its machine or alone, is replaced, and what
it had in hand is done by another: a result is written once, whoever made it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from fusecli import __version__
from fusecli.batch.options import BatchOptions
from fusecli.batch.pair_inputs import FileStamp, FileStamps
from fusecli.batch.ray.cluster import connected, refuse_ended, worker_count
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.worker import Fuser, Result
from fusecli.errors import FuseError, RayError, shortened
from fusecli.features.file import open_features
from fusecli.features.formats.base import one_line
from fusecli.pairs.open import Pair
from fusecli.report.report import Diagnosis, sha256_of

_QUEUED = 2  # chunks a worker has in hand: one it works on, one that is there when it is done
_AHEAD = 3  # chunks a worker that may wait for the one whose turn it is
_MOST_PAIRS = 256  # of a chunk: its way costs about a millisecond
_FIRST_PAIRS = 8
_MOST_BYTES = 16 << 20
_LEAST_BYTES = 1 << 20
_TRIES = 3  # a pair that ended so many workers is not tried again
_MOST_LOSSES = 20  # workers lost one after the other; finding one bad pair of a chunk takes 12
_PATIENCE = 10.0  # seconds without any result until it is said that nothing happens
_LOST = object()

Tell = Callable[[str], None]
# What a worker gives back for a pair: a result without the pair.
Made = tuple[list[FileStamp], Any, str | None, list[Diagnosis]]


class Worker:
    """A Ray actor that fuses chunks of pairs.

    Args:
        spec: what is computed.
        folder: the driver's working directory, which relative paths are about.
        version: of the driver's fusecli.
    """

    def __init__(self, spec: FusionSpec, folder: str, version: str) -> None:
        self._spec, self._folder, self._version = spec, folder, version
        self._fuser = Fuser(spec)
        self._held = contextlib.ExitStack()

    def work(self, pairs: list[Pair], budget: int) -> list[Made]:
        """Fuse pairs, as `Fuser.work` does.

        Raises:
            FuseError: what concerns the whole run.
        """
        results = self._fuser.work(pairs, budget)
        return [(made.stamps, made.tensors, made.error, made.diagnoses) for made in results]

    def begin(self) -> None:
        """See that this process computes what the driver would.

        Raises:
            RayError: another version, another file system or other weights are here.
        """
        node = socket.gethostname()
        if self._version != __version__:
            raise RayError(
                f"fusecli is {__version__} on {node} and {self._version} here: install the same"
            )
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise RayError(
                f"{self._folder}: cannot be entered on {node}: {error.strerror}: workers read "
                "the same paths as this machine, from a file system that all share"
            ) from None
        if self._spec.weights is not None:
            with open_features(self._spec.weights) as file:
                if sha256_of(file) != self._spec.sha256:
                    raise RayError(f"{self._spec.weights}: is another file on {node} than here")
        self._held.enter_context(self._fuser.undivided())  # for as long as this process lives


@dataclass(eq=False)
class _Chunk:
    """Some pairs on their way.

    Attributes:
        tries: how many workers have ended over them.
        slot: number of the worker that has, or had, them in hand.
        results: once they are there.
    """

    pairs: list[Pair]
    tries: int = 0
    slot: int = -1
    results: list[Result] | None = None


def worked_on_ray(
    o: BatchOptions, spec: FusionSpec, todo: Iterator[Pair], tell: Tell
) -> Generator[list[Result], None, None]:
    """Results in the order of the pairs, made by Ray's workers.

    Args:
        o: the options.
        spec: what is computed.
        todo: the pairs.
        tell: receives notes and warnings.

    Returns:
        Results as they come; nothing, now and then, while workers are waited for.

    Raises:
        FuseError: Ray cannot be reached, its workers do not serve, or end again and again.
    """
    assert o.ray is not None
    first = list(islice(todo, 1))
    if not first:
        return  # Ray takes seconds to start
    with connected(o.ray, o) as ray:
        try:
            pool = Pool(ray, o, spec, tell)
            try:
                yield from pool.run(chain(first, todo))
            finally:
                pool.close()
        except ray.exceptions.RayError as error:
            raise RayError(f"--ray: Ray does not serve any more: {_reason(error)}") from None


class Pool:
    """The workers, and the chunks that wait for them or are in their hands.

    Args:
        ray: the library, connected.
        o: the options.
        spec: what is computed.
        tell: receives notes and warnings.
    """

    def __init__(self, ray: Any, o: BatchOptions, spec: FusionSpec, tell: Tell) -> None:
        assert o.ray is not None
        self._ray, self._spec, self._tell = ray, spec, tell
        size = worker_count(o, ray.cluster_resources())
        self._kind = ray.remote(num_cpus=1, num_gpus=o.ray.gpus_per_worker)(Worker)
        self._most = _AHEAD * size
        self._budget = min(_MOST_BYTES, max(_LEAST_BYTES, o.max_memory // self._most))
        self._order: list[_Chunk] = []  # all chunks, in the order of the pairs
        self._waiting: deque[_Chunk] = deque()  # those that nobody has in hand
        # By Ray's references: the chunk that a result is of, the number of a worker that begins.
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
            FuseError: the workers do not serve, or end again and again.
        """
        size = _FIRST_PAIRS
        while True:
            while len(self._order) < self._most and (pairs := list(islice(todo, size))):
                self._order.append(_Chunk(pairs))
                self._waiting.append(self._order[-1])
            if not self._order:
                return
            self._hand_out()
            results = self._order[0].results
            if results is None:
                if not self._wait():
                    yield []
                continue
            first = self._order.pop(0)
            if len(results) < len(first.pairs):  # they are larger than was thought
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
        """Chunks that are to be done next, and their place among all."""
        self._order[place:place] = chunks
        self._waiting.extendleft(reversed(chunks))

    def _hand_out(self) -> None:
        """Give the workers that serve what they can take."""
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
        """Wait for any worker to begin or to be done with a chunk; false after a while."""
        under_way = [*self._in_hand, *self._beginning]
        ready, _ = self._ray.wait(under_way, num_returns=1, timeout=_PATIENCE)
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
            chunk.results = [Result(pair, *each) for pair, each in pairs]
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
        """What a worker gave, or _LOST where there is no worker any more."""
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
        except errors.RayError as error:  # it has ended, or what it made is gone with its machine
            self._replace(slot, error)
            return _LOST

    def _replace(self, slot: int, error: Exception) -> None:
        """Start another worker; what the lost one had not begun goes back."""
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
    """Of Ray's paragraphs the sentence that says what happened."""
    text = " ".join(str(error).split())
    found = re.search(r"Worker exit type: \w+|node.{0,80}(?:dead|died|terminated)", text)
    return found[0] if found else shortened(text, 200)
