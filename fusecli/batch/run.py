"""One run: read pairs, write results in order; the journal tells which pairs are left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

from fusecli.batch.attention import uniform_attention
from fusecli.batch.merge_shards import damaged_lines
from fusecli.batch.options import BatchOptions
from fusecli.batch.pair_features import PairFeaturesReader
from fusecli.batch.previous import Found, lost_lines, todo
from fusecli.batch.resolve import resolve
from fusecli.batch.run_spec import FusionSpec
from fusecli.batch.store.encode import Encoder
from fusecli.batch.store.entries import removed_entry
from fusecli.batch.store.files import FileSink
from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.history import PairState, PreviousResults, latest_entries, path_told
from fusecli.batch.store.journal import Entry, Journal
from fusecli.batch.store.locks import check_platform
from fusecli.batch.store.pack_index import write_index
from fusecli.batch.store.packs import PackSink
from fusecli.batch.store.result import Result
from fusecli.batch.store.run_record import LayoutRecord, RunRecord
from fusecli.batch.store.verify import WrittenResults
from fusecli.batch.summary import Summary
from fusecli.batch.threads import ThreadWorkers
from fusecli.batch.tuning import Tuning
from fusecli.batch.weights import RunWeights
from fusecli.batch.worker import Fuser
from fusecli.errors import DiagnosisError, FuseError, UsageError
from fusecli.features.protected import ProtectedFiles
from fusecli.fusion.results import query_sides
from fusecli.pairs.fingerprints import forget_folders
from fusecli.pairs.open import Pair, PairSource, open_pairs
from fusecli.report import feature_diagnoses, result_diagnoses
from fusecli.report.report import Diagnosis

Tell = Callable[[str], None]
Report = Callable[[int, int], None]
_DEFAULT = Tuning()


class Sink(Protocol):
    """Where results go."""

    def write(self, results: list[Result]) -> None: ...
    def is_valid(self, entry: Entry) -> bool: ...
    def unfinished(self, entry: Entry) -> bytes | None: ...
    def exists(self, pair: Pair, state: PairState) -> bool: ...
    def delete_result(self, pair: Pair) -> None: ...
    def delete_entry(self, entry: Entry) -> None: ...
    def commit(self) -> None: ...
    def finish(self) -> None: ...
    def rollback(self) -> None: ...


class Workers(Protocol):
    """What fuses pairs."""

    def __iter__(self) -> Iterator[list[Result]]: ...
    def drain(self) -> Iterator[list[Result]]: ...
    def close(self) -> None: ...


def run_batch(
    options: BatchOptions,
    tell: Tell = lambda line: None,
    progress: Report = lambda done, total: None,
    tuning: Tuning = _DEFAULT,
) -> Summary:
    """Fuse every pair that is not done yet; can be stopped at any moment and run again.

    Args:
        options: what to do.
        tell: receives notes and warnings, one line each, as soon as they are known.
        progress: receives pairs done and pairs in all.
        tuning: amounts that do not show in the results.

    Returns:
        What was done. It lists failed pairs too, which do not end the run.

    Raises:
        FuseError: an error that ends the whole run; results written before it stay.
    """
    began = time.monotonic()
    check_platform()
    options.check()
    forget_folders()
    if options.ray is not None:
        from fusecli.batch.ray.cluster import check_ray

        check_ray(options.ray)
    _refuse_inputs_inside(options)
    source = open_pairs(options.pairs)
    with ExitStack() as stack:
        protected = ProtectedFiles(lambda: _protected(options, source))
        folder = OutputFolder(options.output, options.shard, protected, tuning)
        stack.callback(folder.leave)
        spec, weights, found = _begin(options, folder, source)
        for note in _notes(options, spec, weights, source, found):
            tell(note)
        sink = _sink(options, spec, folder, tuning)
        stack.callback(sink.rollback)
        written = WrittenResults(folder.results, options.out_dtype, sink.unfinished)
        stack.callback(written.close)
        history = PreviousResults(
            folder.root,
            folder.own_journals,
            sink.is_valid,
            folder.spec,
            written.are_as_written if options.verify else None,
            (0, 1) if options.shard is None else (options.shard.index - 1, options.shard.of),
        )
        assert folder.journal is not None
        folder.journal.run = history.last_run + 1
        for line in damaged_lines(folder, history):
            tell(line)
        for line in lost_lines(history) if options.verify else ():
            tell(line)
        run = _Run(options, sink, source, history, progress, folder.journal)
        run.summary.run_diagnoses = [f"{each.code}: {each.message}" for each in found]
        reader = PairFeaturesReader(spec, tuning)
        stack.callback(reader.close)
        found_before = Found(run.summary, run.earlier)
        pairs = todo(options, source, history, reader, sink.exists, found_before)
        with _working(options, spec, weights, pairs, tell, tuning) as workers:
            run.write_all(workers)
        if not run.stopped_by_failure:
            _prune(options, folder, sink, run, tell)
        sink.finish()
        run.summary.seconds = time.monotonic() - began
        if run.stopped_by_failure:
            id, why = run.summary.failures[0]
            raise FuseError(
                f"{id}: {why} (--on-error stop; {run.summary.done:,} done, the same command "
                "goes on)"
            )
        if folder.finish() and options.pack:
            run.summary.index = write_index(folder)
    return run.summary


class _Run:
    """The pairs of a run on their way from the workers to the sink.

    Attributes:
        summary: counts.
        earlier: ids of pairs that have a result of an earlier run and are fused again, with
            whether their inputs have changed since.
        stopped_by_failure: a pair failed, and `--on-error stop` ended the run.
    """

    def __init__(
        self,
        options: BatchOptions,
        sink: Sink,
        source: PairSource,
        history: PreviousResults,
        progress: Report,
        journal: Journal,
    ) -> None:
        shard = options.shard
        self.summary = Summary(
            options.output, None if shard is None else f"{shard.index}/{shard.of}"
        )
        self.summary.unmatched = source.unmatched
        self.earlier: dict[str, bool] = {}
        self.stopped_by_failure = False
        self.history = history
        self._on_error, self._sink, self._progress = options.on_error, sink, progress
        self._journal = journal
        self._total = -(-(source.total or 0) // (1 if shard is None else shard.of))

    def write_all(self, workers: Workers) -> None:
        """Write the results of the workers; after an interruption, also those that are done
        already."""
        try:
            for results in workers:
                self._write(results)
                self._progress(min(self._total, self.summary.seen), self._total)
                if self.summary.failed and self._on_error == "stop":
                    self.stopped_by_failure = True
                    return
        except Exception:
            raise
        except BaseException:  # a signal: results that are done are not thrown away
            for results in workers.drain():
                self._write(results)
            self._sink.commit()
            # The signal may have come after results were written and before they were counted.
            seen = self.summary.skipped + self.summary.failed_before + self._journal.outcomes
            self._progress(min(self._total, seen), self._total)
            raise

    def _write(self, results: list[Result]) -> None:
        self._sink.write(results)
        for result in results:
            if result.error is not None and result.pair.id in self.earlier:
                self._sink.delete_result(result.pair)
            self.summary.add(result, self.earlier.pop(result.pair.id, False))


def _protected(options: BatchOptions, pairs: Iterable[Pair]) -> Iterator[str]:
    """All files that the run reads."""
    for path in (options.weights, options.pairs.manifest):
        if path is not None:
            yield path
    for pair in pairs:
        yield from pair.files


def _refuse_inputs_inside(options: BatchOptions) -> None:
    """Raises:
    UsageError: a folder of inputs lies in the output folder.
    """
    output = os.path.realpath(options.output)
    for path in (options.pairs.images, options.pairs.texts):
        if path is not None and os.path.realpath(path).startswith(os.path.join(output, "")):
            raise UsageError(
                f"{path}: lies in the output folder {options.output}, and inputs are never "
                "changed: say another -o"
            )


def _refuse_output_inside(options: BatchOptions) -> None:
    """Raises:
    UsageError: the output folder lies in a folder of inputs.
    """
    output = os.path.realpath(options.output)
    for path in (options.pairs.images, options.pairs.texts):
        if path is not None and output.startswith(os.path.join(os.path.realpath(path), "")):
            raise UsageError(
                f"-o {options.output}: lies in the folder of inputs {path}, and a later run would "
                "take its results for inputs: say another -o"
            )


def _begin(
    options: BatchOptions, folder: OutputFolder, source: PairSource
) -> tuple[FusionSpec, RunWeights, list[Diagnosis]]:
    """Decide on the run and begin it; no file is created before all checks have passed.

    Returns:
        The run's spec and weights, and what may be wrong with all of its results.
    """
    recorded = None
    if not options.force:
        recorded = folder.look()
        if recorded is None:
            folder.refuse_foreign()
    else:
        folder.refuse_training()
    if recorded is None:  # a run that fusecli 0.1.0 began there can still be finished
        _refuse_output_inside(options)
    spec, weights = resolve(options, source, recorded)
    found = feature_diagnoses.swapped_names(options.pairs.images or "", options.pairs.texts or "")
    found += result_diagnoses.assumed_of_weights(weights.stored, spec.weights)
    for side in query_sides(spec.direction):
        found += result_diagnoses.closed_gate(spec.gate, side)
    found += uniform_attention(spec, weights, source.first)
    if options.strict and found:
        raise DiagnosisError("--strict: " + " | ".join(map(str, found)))
    folder.enter()
    if options.force:
        folder.begin_anew()
    elif (now := folder.record()) != recorded:  # another shard was quicker
        recorded = now
        spec, weights = resolve(options, source, recorded)
    folder.begin(_record(options, spec), recorded)
    return spec, weights, found


def _record(options: BatchOptions, spec: FusionSpec) -> RunRecord:
    layout = LayoutRecord(False, format=options.written)
    if options.pack:
        layout = LayoutRecord(True, shard_size=options.shard_size)
    return spec.to_record(layout)


def _notes(
    options: BatchOptions,
    spec: FusionSpec,
    weights: RunWeights,
    source: PairSource,
    found: list[Diagnosis],
) -> Iterator[str]:
    for note in source.notes:
        yield f"note: {note}"
    if source.unmatched.total:
        yield f"warning: {source.unmatched}"
    if weights.stored is not None:
        for note in weights.stored.notes(str(spec.weights)):
            yield f"note: {note}"
    for diagnosis in found:
        yield f"warning: {diagnosis}"
    if spec.seed is not None and all(d.code != "uniform-attention" for d in found):
        yield f"note: {result_diagnoses.untrained_note(options.weights, spec.seed, spec.config)}"


def _sink(
    options: BatchOptions,
    spec: FusionSpec,
    folder: OutputFolder,
    tuning: Tuning,
) -> PackSink | FileSink:
    metadata, dtype = spec.config.to_dict(), options.out_dtype
    if options.pack:
        return PackSink(folder, options.shard_size, dtype, metadata, tuning)
    return FileSink(folder, Encoder(dtype, metadata), options.ending, tuning)


@contextmanager
def _working(
    options: BatchOptions,
    spec: FusionSpec,
    weights: RunWeights,
    pairs: Iterator[Pair],
    tell: Tell,
    tuning: Tuning,
) -> Iterator[Workers]:
    """The workers of a run, which are closed at the end of the block."""
    workers: Workers
    with ExitStack() as stack:
        if options.ray is not None:
            from fusecli.batch.ray.pool import RayWorkers

            workers = RayWorkers(options, spec, pairs, tell)
        else:
            fuser = Fuser(spec, weights, tuning)
            stack.callback(fuser.close)
            stack.enter_context(fuser.undivided())
            workers = ThreadWorkers(options, fuser, pairs, tuning)
        stack.callback(workers.close)
        yield workers


def _prune(options: BatchOptions, folder: OutputFolder, sink: Sink, run: _Run, tell: Tell) -> None:
    """Report, or with --prune remove, results of pairs that are no longer among the inputs."""
    shard = options.shard
    count = run.history.unseen
    if not count:
        return
    what = f"{count:,} {'result is' if count == 1 else 'results are'} of inputs that are not there"
    if not options.prune:
        how = "--prune" if shard is None else "--prune, in a run without --shard,"
        tell(f"warning: {what} any more: {how} removes {'it' if count == 1 else 'them'}")
        return
    assert folder.journal is not None
    entries = partial(latest_entries, folder.root, folder.own_journals, folder.spec)
    # A manifest may have given the name of such a result to another pair.
    used = {path_told(e.output) for e in entries() if e.done and not run.history.is_unseen(e.id)}
    removed = []
    for entry in entries():
        if entry.done and run.history.is_unseen(entry.id):
            if path_told(entry.output) not in used:
                sink.delete_entry(entry)
            removed.append(removed_entry(entry.id))
    sink.commit()
    folder.journal.append(removed)
    run.summary.pruned = len(removed)
    tell(f"note: {what} any more: removed")
