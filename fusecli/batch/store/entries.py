"""Lines of the journal from the results of pairs."""

from __future__ import annotations

from fusecli.batch.store.journal import Entry
from fusecli.batch.store.result import Result
from fusecli.pairs.fingerprints import source_of


def done_entry(
    result: Result, output: str, at: tuple[int, int] | None = None, size: int = 0
) -> Entry:
    """The line of a pair that was fused.

    Args:
        result: the pair's.
        output: the file that holds it, relative to the output folder.
        at: where its numbers lie in a pack.
        size: of a file of its own.
    """
    return Entry(
        result.pair.id,
        output,
        result.shapes,
        None,
        result.stamps,
        at,
        size,
        source_of(result.pair),
        result.content,
        [f"{diagnosis.code}: {diagnosis.message}" for diagnosis in result.diagnoses],
        [note.message for note in result.notes],
        written=result.written,
    )


def failed_entry(result: Result) -> Entry:
    """The line of a pair that failed."""
    return Entry(
        result.pair.id,
        None,
        None,
        result.error,
        result.stamps,
        source=source_of(result.pair),
    )


def removed_entry(id: str) -> Entry:
    """The line of a pair whose result was removed, since it is no longer among the inputs."""
    return Entry(id, None, None, None, [], removed=True)
