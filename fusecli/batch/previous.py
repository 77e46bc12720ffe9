"""Decide which pairs a run has to do, from the results of earlier runs and the present inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fusecli.batch.options import BatchOptions
from fusecli.batch.pair_features import PairFeaturesReader
from fusecli.batch.store.history import PairState, PreviousResults
from fusecli.batch.store.journal import fingerprint
from fusecli.batch.summary import Summary
from fusecli.errors import counted
from fusecli.pairs.fingerprints import content_of, source_of
from fusecli.pairs.open import Pair
from fusecli.pairs.stamps import FileStamps

Exists = Callable[[Pair, PairState], bool]


@dataclass(frozen=True)
class Found:
    """Receives what `todo` learns about pairs of earlier runs.

    Attributes:
        summary: receives the counts.
        earlier: receives the pairs that have a result of an earlier run, with whether their
            inputs have changed since.
    """

    summary: Summary
    earlier: dict[str, bool]


def todo(
    options: BatchOptions,
    pairs: Iterable[Pair],
    history: PreviousResults,
    reader: PairFeaturesReader,
    exists: Exists,
    found: Found,
) -> Iterator[Pair]:
    """The pairs that this run has to fuse, in order; the others are counted.

    Args:
        options: of the run.
        pairs: all of them.
        history: what earlier runs did.
        reader: reads a pair whose content is compared.
        exists: whether the file of a pair exists as an earlier run left it.
        found: receives the counts and the pairs that are fused again.
    """
    inputs = _Inputs(reader, options.verify)
    shard = options.shard
    # What --verify finds is made again, whatever else is left out.
    retried = ("failed", "done", "lost") if options.verify else ("failed",)
    for pair in pairs:
        if shard is not None and fingerprint(pair.id) % shard.of != shard.index - 1:
            continue
        state = history.state(pair.id)
        same = state.known in ("done", "failed") and inputs.are_the_same(pair, state)
        if options.strict and state.diagnosed:
            same = False
        if state.known == "done" and same and exists(pair, state):
            found.summary.skipped += 1
        elif state.known == "failed" and same and not options.retry_failed:
            found.summary.add_failed_before(pair.id)
        elif options.retry_failed and state.known not in retried:
            continue
        else:
            if state.known in ("done", "lost"):
                found.earlier[pair.id] = state.known == "done" and not same
            yield pair


def lost_lines(history: PreviousResults) -> Iterator[str]:
    """What `--verify` says of results that it does not find as earlier runs wrote them."""
    then = "made again, where the pair is among the inputs"
    if count := history.missing:
        yield (
            "warning: results of earlier runs are gone or not as they were written "
            f"({count:,} of them): they are {then}"
        )
    if count := history.written_unknown:
        one = count == 1
        yield (
            f"note: {counted(count, 'result')} of an older version {'does' if one else 'do'} not "
            f"say what was written: {'it is' if one else 'they are'} {then}"
        )


class _Inputs:
    """Compares the inputs of pairs with those of an earlier run.

    Args:
        reader: reads a pair whose content is compared.
        verify: always compare the content too.
    """

    def __init__(self, reader: PairFeaturesReader, verify: bool) -> None:
        self._reader, self._verify = reader, verify

    def are_the_same(self, pair: Pair, state: PairState) -> bool:
        """Whether a pair's inputs are the same as in the earlier run.

        The files must have the size and time that they had then. If files, keys and rows are
        also the same, the inputs are the same. If those differ, or with `verify`, the content of
        the features is compared. Journals of fusecli 0.1.0 have neither source nor content.
        """
        stamps = FileStamps().of(pair)
        if fingerprint(pair.id, stamps) != state.version:
            return False
        same_source = state.source in (0, source_of(pair))
        if same_source and not self._verify:
            return True
        if state.known == "failed" or not state.content:
            return False
        features = self._reader.read(pair, stamps)
        if isinstance(features, str):
            return False
        return content_of(features, features.attention_mask) == state.content
