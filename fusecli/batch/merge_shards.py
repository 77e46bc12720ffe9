"""After the shards of a run: count what they have finished, and index their packs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from fusecli.batch.store.files import file_exists
from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.history import PreviousResults
from fusecli.batch.store.journal import Entry
from fusecli.batch.store.layout import shard_of
from fusecli.batch.store.locks import check_platform
from fusecli.batch.store.pack_headers import PackHeaders
from fusecli.batch.store.pack_index import write_index
from fusecli.batch.summary import Summary
from fusecli.errors import counted
from fusecli.features.protected import ProtectedFiles

Tell = Callable[[str], None]

_RUN = "run fusecli batch with them again"  # a merge computes nothing
_NOW = "this run fuses them again if they are its own"


def merge(output: str, tell: Tell = lambda line: None) -> Summary:
    """Write the index of packs over all shards of a run, and count what is finished.

    Args:
        output: the output folder.
        tell: receives notes and warnings.

    Raises:
        OutputError: the folder holds no run, or somebody works in it.
    """
    check_platform()
    folder = OutputFolder(output, None, ProtectedFiles(list))
    record = folder.look()
    if record is None:
        raise folder.holds_no_run()
    with ExitStack() as stack:
        stack.callback(folder.leave)
        folder.enter()
        summary = Summary(output)
        headers = PackHeaders(folder.root)

        def is_there(entry: Entry) -> bool:
            if entry.at is not None:
                return headers.holds(entry)
            return entry.output is not None and file_exists(folder, entry.output, entry.size)

        journals = folder.own_journals
        history = PreviousResults(folder.root, journals, is_there, folder.spec)
        summary.skipped, summary.failed_before = history.done, history.failed
        for line in [*damaged_lines(folder, history, _RUN), *_unfinished(folder, journals)]:
            tell(line)
        if history.missing:
            tell(
                f"warning: {history.missing:,} results that the journals name are not finished or "
                "not there; they are not counted: run their shards again"
            )
        if record.layout.pack:
            summary.index = write_index(folder)
        else:
            tell("note: results are one file a pair: there is no index to write")
    return summary


def _unfinished(folder: OutputFolder, journals: list[str]) -> Iterator[str]:
    """A warning for each number of shards, where some of them have not finished."""
    counts = {shard[1] for name in journals if (shard := shard_of(name)) is not None}
    for of in sorted(counts):
        missing = folder.unfinished(of)
        if missing:
            named = ", ".join(f"{index}/{of}" for index in missing[:8])
            more = ", ..." if len(missing) > 8 else ""
            yield (
                f"warning: {len(missing):,} of {of:,} shards have not finished: {named}{more}; "
                "what they have not finished is not in the index"
            )


def damaged_lines(
    folder: OutputFolder, history: PreviousResults, then: str = _NOW
) -> Iterator[str]:
    """A warning for every journal with lines that are damaged, or of a run with other options.

    Args:
        folder: the output folder.
        history: what its journals say.
        then: what happens to pairs that have no other line.
    """
    for name, lines in history.damaged.items():
        first = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
        yield (
            f"warning: {folder.inside(name)}: {len(lines):,} damaged "
            f"{'line' if len(lines) == 1 else 'lines'} ({first}) not used; pairs that no other "
            f"line names: {then}"
        )
    for name, count in history.foreign.items():
        yield (
            f"warning: {folder.inside(name)}: {counted(count, 'line')} of a run with other options "
            "than run.json says, as in two output folders that were copied together: not used; "
            f"pairs that no other line names: {then}"
        )
