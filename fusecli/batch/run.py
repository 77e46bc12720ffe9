"""One run: pairs in, results out, in order, with what is left to do found out by the journal."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, Protocol

from fusecli.batch.options import BatchOptions
from fusecli.batch.resolve import settle
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.store.encode import Encoder
from fusecli.batch.store.files import FileSink
from fusecli.batch.store.folder import OutputFolder, described
from fusecli.batch.store.journal import DONE, FAILED, Entry, PreviousResults, fingerprint
from fusecli.batch.store.packs import PackSink, write_index
from fusecli.batch.summary import Summary
from fusecli.batch.worker import Fuser, Result
from fusecli.errors import FuseError, UsageError
from fusecli.fusion.results import query_sides
from fusecli.job.open import untrained_note
from fusecli.pairs.open import Pair, PairSource, open_pairs
from fusecli.report import diagnoses as diagnose

_WINDOW = 256  # pairs handed over at once: enough that handing over costs nothing
_FIRST_WINDOW = 8  # until it is known how large results are

Tell = Callable[[str], None]
Report = Callable[[int, int], None]


class Sink(Protocol):
    """Where results go."""

    def put(self, results: list[Result]) -> None: ...
    def counts(self, entry: Entry) -> bool: ...
    def there(self, pair: Pair, size: int) -> bool: ...
    def withdraw(self, pair: Pair) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


def run_batch(
    o: BatchOptions,
    tell: Tell = lambda line: None,
    progress: Report = lambda done, total: None,
) -> Summary:
    """Fuse every pair that is not done yet; can be stopped at any moment and run again.

    Args:
        o: what to do.
        tell: receives notes and warnings for people, one line each, as they are known.
        progress: receives pairs done and pairs in all.

    Returns:
        What was done. Pairs that failed are in it; they do not end the run.

    Raises:
        FuseError: what concerns the whole run; what was done until then stays.
    """
    began = time.monotonic()
    o.check()
    _refuse_inputs_inside(o)
    if o.ray is not None:
        from fusecli.batch.ray.cluster import check_ray
        from fusecli.batch.ray.pool import worked_on_ray

        check_ray(o.ray)
    source = open_pairs(o.pairs)
    with ExitStack() as stack:
        folder = OutputFolder(o.output, o.shard)
        stack.callback(folder.leave)
        spec = _begin(o, folder, source)
        for note in _notes(o, spec, source):
            tell(note)
        sink = _sink(o, spec, folder)
        stack.callback(sink.abandon)
        summary = Summary(o.output, None if o.shard is None else f"{o.shard.index}/{o.shard.of}")
        summary.unmatched = source.unmatched
        history = PreviousResults(folder.journals, sink.counts)
        earlier: dict[str, bool] = {}
        todo = _todo(o, source, history, sink, summary, earlier)
        total = -(-(source.total or 0) // (1 if o.shard is None else o.shard.of))
        worked = _worked(o, spec, todo)
        if o.ray is not None:
            worked = worked_on_ray(o, spec, todo, tell)
        stack.callback(worked.close)
        for results in worked:
            for result in results:
                if result.error is not None and result.pair.id in earlier:
                    sink.withdraw(result.pair)
            sink.put(results)
            for result in results:
                summary.add(result, earlier.pop(result.pair.id, False))
            progress(min(total, summary.seen), total)
            if summary.failed and o.on_error == "stop":
                break
        sink.finish()
        summary.seconds = time.monotonic() - began
        if summary.failed and o.on_error == "stop":
            id, why = summary.failures[0]
            raise FuseError(
                f"{id}: {why} (--on-error stop; {summary.done:,} done, the same command goes on)"
            )
        if folder.finish() and o.pack:
            summary.index = write_index(folder)
    return summary


def merge(output: str, tell: Tell = lambda line: None) -> Summary:
    """Write the index of packs over all shards of a run, and count what they did.

    Args:
        output: the output folder.
        tell: receives notes.

    Raises:
        OutputError: the folder holds no run, or somebody works in it.
    """
    with ExitStack() as stack:
        folder = OutputFolder(output, None)
        recorded = folder.record()
        if recorded is None:
            raise folder.holds_no_run()
        stack.callback(folder.leave)
        folder.enter()
        summary = Summary(output)
        history = PreviousResults(folder.journals)
        summary.skipped, summary.failed_before = history.done, history.failed
        if recorded["layout"]["pack"]:
            summary.index = write_index(folder)
        else:
            tell("note: results are one file a pair: there is no index to write")
    return summary


def _refuse_inputs_inside(o: BatchOptions) -> None:
    """Results are named after ids, and one could be named as an input is."""
    output = os.path.realpath(o.output)
    for path in (o.pairs.images, o.pairs.texts):
        if path is not None and os.path.realpath(path).startswith(os.path.join(output, "")):
            raise UsageError(
                f"{path}: lies in the output folder {o.output}, and inputs are never changed: "
                "say another -o"
            )


def _begin(o: BatchOptions, folder: OutputFolder, source: PairSource) -> FusionSpec:
    folder.enter()
    recorded = None if o.force else folder.record()
    if recorded is None and not o.force:
        folder.refuse_foreign()
    spec = settle(o, source, source.total or 0, recorded)
    if o.force:  # only now that the new run can begin
        folder.begin_anew(source)
    layout: dict[str, Any] = {"pack": o.pack, "format": o.written}
    if o.pack:
        layout = {"pack": True, "shard_size": o.shard_size}
    folder.begin(described(spec, layout), recorded)
    return spec


def _notes(o: BatchOptions, spec: FusionSpec, source: PairSource) -> Iterator[str]:
    for note in source.notes:
        yield f"note: {note}"
    if source.unmatched.total:
        yield f"warning: {source.unmatched}"
    if spec.seed is not None:
        yield f"note: {untrained_note(o.weights, spec.seed, spec.config)}"
    found = diagnose.heads_assumed(spec.heads_assumed, spec.config, spec.weights)
    for side in query_sides(spec.direction):
        found += diagnose.closed_gate(spec.gate, side)
    for diagnosis in found:
        yield f"warning: {diagnosis}"


def _sink(o: BatchOptions, spec: FusionSpec, folder: OutputFolder) -> Sink:
    metadata = spec.config.to_dict()
    if o.pack:
        return PackSink(folder, o.shard_size, o.out_dtype, metadata)
    return FileSink(folder, Encoder(o.out_dtype, metadata), o.ending)


def _todo(
    o: BatchOptions,
    source: PairSource,
    history: PreviousResults,
    sink: Sink,
    summary: Summary,
    earlier: dict[str, bool],
) -> Iterator[Pair]:
    """The pairs that this run is to do, in order; counts the others.

    Those that have a result of an earlier run are added to `earlier`, with whether their inputs
    have changed since.
    """
    for pair in source:
        if o.shard is not None and fingerprint(pair.id) % o.shard.of != o.shard.index - 1:
            continue
        state, same, size = history.state(pair)
        if state == DONE and same and sink.there(pair, size):
            summary.skipped += 1
        elif state == FAILED and same and not o.retry_failed:
            summary.failed_before += 1
        elif o.retry_failed and state != FAILED:
            continue
        else:
            if state == DONE:
                earlier[pair.id] = not same
            yield pair


def _worked(
    o: BatchOptions, spec: FusionSpec, todo: Iterator[Pair]
) -> Generator[list[Result], None, None]:
    """Results in the order of the pairs, made by several threads."""
    fuser = Fuser(spec)
    workers = o.workers or spec.workers
    budget = max(1, o.max_memory // (2 * workers + 1))
    size = _FIRST_WINDOW
    under_way: deque[tuple[list[Pair], Future[list[Result]]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        with fuser.undivided():
            while True:
                while len(under_way) < 2 * workers and (window := list(islice(todo, size))):
                    under_way.append((window, pool.submit(fuser.work, window, budget)))
                if not under_way:
                    return
                window, future = under_way.popleft()
                results = future.result()
                if len(results) < len(window):  # they are larger than was thought
                    rest = window[len(results) :]
                    under_way.appendleft((rest, pool.submit(fuser.work, rest, budget)))
                size = _window(results, budget)
                yield results
    finally:
        pool.shutdown(cancel_futures=True)


def _window(results: list[Result], budget: int) -> int:
    """How many pairs to hand over at once, going by what the last ones took."""
    taken = sum(result.nbytes for result in results)
    each = max(1, taken // len(results))
    return max(1, min(_WINDOW, budget // each))
