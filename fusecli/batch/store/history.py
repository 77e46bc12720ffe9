"""What earlier runs did, read from their journals, in 50 bytes a pair."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.store.journal import Entry, fingerprint, of_spec, read_entries
from fusecli.batch.store.safe_folder import SafeFolder

Known = Literal["nothing", "done", "failed", "lost"]
# Not as written, and not known to be as written, are results that may be there all the same.
_NOTHING, _DONE, _FAILED, _DIAGNOSED, _MISSING, _NOT_AS_WRITTEN, _WRITTEN_UNKNOWN = range(7)
_KNOWN: tuple[Known, ...] = ("nothing", "done", "failed", "done", "lost", "lost", "lost")
_WITH_RESULT = (_DONE, _DIAGNOSED, _NOT_AS_WRITTEN, _WRITTEN_UNKNOWN)


@dataclass(frozen=True, slots=True)
class PairState:
    """The latest known outcome of one pair.

    Attributes:
        known: "done", "failed", "lost" (it was done, and its result is gone, or is not what was
            written as far as is known), or "nothing".
        version: fingerprint of the id and of size and time of its files, as they were read.
        source: which files, keys and rows were read; 0 if the journal does not say it.
        content: of the features that were read; 0 if it is not known.
        size: of its file; 0 if it is not known.
        output: tells the path of its file, or of its pack, in this process (see `path_told`).
        diagnosed: something may be wrong with its result.
    """

    known: Known = "nothing"
    version: int = 0
    source: int = 0
    content: int = 0
    size: int = 0
    output: int = 0
    diagnosed: bool = False


class PreviousResults:
    """The latest line of every pair.

    Args:
        folder: the output folder.
        journals: names of all journals in it, older ones first. The order decides between lines
            without a run number.
        is_valid: whether the result that a line names still exists.
        spec: of the run; lines of other runs are not used. 0 uses all.
        are_as_written: whether a result holds the numbers that its line says were written; asked
            for the latest line of each pair. None: results that exist are believed.
        part: which pairs are compared and counted: those of this part, from 0, of so many shards.

    Attributes:
        damaged: by journal, the numbers of its damaged lines. Journals without any are left out.
        foreign: by journal, how many of its lines are of a run with other options, and name a
            pair that no usable line names. Journals without such lines are left out.
        last_run: the highest number of a run.

    Raises:
        OutputError: a journal cannot be read.
    """

    def __init__(
        self,
        folder: SafeFolder,
        journals: list[str],
        is_valid: Callable[[Entry], bool] = lambda entry: True,
        spec: int = 0,
        are_as_written: Callable[[Entry], bool] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.damaged: dict[str, list[int]] = {}
        ends: list[int] = []  # of the lines of each journal, among all
        foreign: dict[str, array[int]] = {}
        ids, versions, sources, contents = array("Q"), array("Q"), array("Q"), array("Q")
        states, sizes, runs = array("B"), array("Q"), array("Q")
        outputs = array("q")
        for name in journals:
            damaged: list[int] = []
            for entry in read_entries(folder, name, damaged):
                if not entry.is_of(spec):
                    foreign.setdefault(name, array("Q")).append(fingerprint(entry.id))
                    continue
                ids.append(fingerprint(entry.id))
                versions.append(fingerprint(entry.id, entry.stamps))
                sources.append(entry.source)
                contents.append(entry.content)
                states.append(_state(entry, is_valid))
                sizes.append(entry.size)
                outputs.append(path_told(entry.output))
                runs.append(entry.run)
            ends.append(len(ids))
            if damaged:
                self.damaged[name] = damaged
        found = np.array(ids, np.uint64)
        numbers = np.array(runs, np.uint64)
        self.last_run = int(numbers.max()) if len(numbers) else 0
        # The latest line of each id: the sort is stable.
        order = np.lexsort((numbers, found))
        ordered = found[order]
        last = np.ones(len(ordered), bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        kept = order[last]
        self._ids: NDArray[np.uint64] = ordered[last]
        self._versions = np.array(versions, np.uint64)[kept]
        self._sources = np.array(sources, np.uint64)[kept]
        self._contents = np.array(contents, np.uint64)[kept]
        self._states = np.array(states, np.uint8)[kept]
        self._sizes = np.array(sizes, np.uint64)[kept]
        self._outputs = np.array(outputs, np.int64)[kept]
        self._seen = np.zeros(len(kept), bool)
        self._in_part: NDArray[np.bool_] = self._ids % np.uint64(part[1]) == part[0]
        usable = self._ids[self._states != _MISSING]
        lost = {name: ~np.isin(np.array(lines), usable) for name, lines in foreign.items()}
        self.foreign = {name: int(each.sum()) for name, each in lost.items() if each.any()}
        if are_as_written is not None:
            places = np.full(len(found), -1, np.int64)
            places[kept] = np.arange(len(kept))
            for name, begin, end in zip(journals, [0, *ends], ends, strict=False):
                # A shard that works now may have added lines.
                entries = of_spec(read_entries(folder, name), spec)
                for entry, place in zip(entries, places[begin:end], strict=False):
                    if place >= 0 and self._in_part[place]:
                        self._compare(int(place), entry, are_as_written)

    def _compare(self, place: int, entry: Entry, are_as_written: Callable[[Entry], bool]) -> None:
        if self._states[place] not in (_DONE, _DIAGNOSED):
            return
        if not entry.written:
            self._states[place] = _WRITTEN_UNKNOWN
        elif not are_as_written(entry):
            self._states[place] = _NOT_AS_WRITTEN

    def __len__(self) -> int:
        return len(self._ids)

    def state(self, id: str) -> PairState:
        """The latest known outcome of a pair; marks the pair as seen."""
        if not len(self._ids):
            return PairState()
        wanted = np.uint64(fingerprint(id))
        index = int(np.searchsorted(self._ids, wanted))
        if index == len(self._ids) or self._ids[index] != wanted:
            return PairState()
        self._seen[index] = True
        return PairState(
            _KNOWN[int(self._states[index])],
            int(self._versions[index]),
            int(self._sources[index]),
            int(self._contents[index]),
            int(self._sizes[index]),
            int(self._outputs[index]),
            bool(self._states[index] == _DIAGNOSED),
        )

    @property
    def failed(self) -> int:
        """Pairs whose latest line says that they failed."""
        return self._count(_FAILED)

    @property
    def done(self) -> int:
        """Pairs whose latest line says that they are done, and whose result exists."""
        return self._count(_DONE, _DIAGNOSED)

    @property
    def missing(self) -> int:
        """Pairs whose latest line says that they are done, and whose result is missing or not as
        it was written."""
        return self._count(_MISSING, _NOT_AS_WRITTEN)

    @property
    def written_unknown(self) -> int:
        """Pairs that are done, and whose line should say what was written, and does not."""
        return self._count(_WRITTEN_UNKNOWN)

    def _count(self, *states: int) -> int:
        return int((np.isin(self._states, states) & self._in_part).sum())

    @property
    def unseen(self) -> int:
        """Pairs that have a result and for which `state` was not called."""
        return int((np.isin(self._states, _WITH_RESULT) & ~self._seen & self._in_part).sum())

    def is_unseen(self, id: str) -> bool:
        """Whether a pair has a result, and `state` was not called for it."""
        wanted = np.uint64(fingerprint(id))
        index = int(np.searchsorted(self._ids, wanted))
        if index == len(self._ids) or self._ids[index] != wanted:
            return False
        return bool(self._states[index] in _WITH_RESULT and not self._seen[index])


def path_told(output: str | None) -> int:
    """64 bits that tell the path of a result, the same only within this process."""
    return hash(output)


def _state(entry: Entry, is_valid: Callable[[Entry], bool]) -> int:
    if entry.error is not None:
        return _FAILED
    if not entry.done:
        return _NOTHING
    if not is_valid(entry):
        return _MISSING
    return _DIAGNOSED if entry.diagnoses else _DONE


def latest_entries(folder: SafeFolder, journals: list[str], spec: int = 0) -> Iterator[Entry]:
    """The latest line of each id, in the order of the journals; keeps 8 bytes a line in memory.

    Args:
        folder: the output folder.
        journals: names of all journals, older ones first.
        spec: of the run; lines of other runs are left out. 0 leaves none out.

    Raises:
        OutputError: a journal cannot be read.
    """

    def entries(name: str) -> Iterator[Entry]:
        return of_spec(read_entries(folder, name), spec)

    ids = array("Q")
    for name in journals:
        ids.extend(fingerprint(entry.id) for entry in entries(name))
    values = np.array(ids, np.uint64)
    values.sort()
    repeated = set(values[1:][values[1:] == values[:-1]].tolist())
    latest: dict[int, tuple[int, str, int]] = {}  # run, journal and place in it
    for name in journals if repeated else []:
        for number, entry in enumerate(entries(name)):
            key = fingerprint(entry.id)
            if key in repeated and (key not in latest or entry.run >= latest[key][0]):
                latest[key] = entry.run, name, number
    for name in sorted(journals, key=lambda name: (len(name), name)):
        for number, entry in enumerate(entries(name)):
            place = entry.run, name, number
            if not repeated or latest.get(fingerprint(entry.id), place) == place:
                yield entry
