"""Go through a source once before the work begins: find errors and duplicates, and count pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unicodedata import normalize

from fusecli.errors import PairsError, shortened
from fusecli.pairs.ids import Hashes, fold, relative_path, repeated
from fusecli.pairs.pair import Listing, Pair, Unmatched

FIRST = 64  # pairs that are remembered: what is typical of a source shows in them


class PairSource:
    """Pairs in one stable order, the same on every machine, made as they are asked for.

    The constructor goes through all pairs once. It raises errors of the source before a run
    begins, and ensures that no two pairs have the same id or the same output file.

    Args:
        listing: what lists the pairs.
        ending: of output files; "" where results are packed and only ids need to differ.

    Attributes:
        total: how many pairs there are.
        unmatched: what has no partner.
        first: the first pairs, at most `FIRST`. Listing a large folder again to look at a few
            of them would take longer than reading them.
        notes: what was assumed or is not used, for people, one sentence each.

    Raises:
        PairsError: the source cannot be read, or two pairs would be one.
    """

    def __init__(self, listing: Listing, ending: str) -> None:
        self._listing, self._ending = listing, ending
        self.unmatched = Unmatched()
        self.first: list[Pair] = []
        self.total = self._survey()
        self.notes = listing.notes

    def __iter__(self) -> Iterator[Pair]:
        """The pairs, from the first."""
        return self._listing.pairs(Unmatched())

    def _survey(self) -> int:
        """Count the pairs and refuse two of one id or output; holds 16 bytes a pair.

        Python's hash of a string has another key in every process, so that a manifest cannot be
        made to collide on purpose. Ids that collide by chance are compared in a second pass.
        """
        count, ids, outputs = 0, Hashes(), Hashes()
        for pair in self._listing.pairs(self.unmatched):
            count += 1
            if count <= FIRST:
                self.first.append(pair)
            ids.add(pair.id)
            if self._ending:
                outputs.add(self._output(pair))
        self._refuse_equal(ids, lambda pair: pair.id)
        self._refuse_equal(outputs, self._output)
        return count

    def _output(self, pair: Pair) -> str:
        return fold(relative_path(pair.id, self._ending) if pair.output is None else pair.output)

    def _refuse_equal(self, hashes: Hashes, name_of: Callable[[Pair], str]) -> None:
        values = hashes.all()
        values.sort()
        alike = repeated(values)
        if not alike:
            return
        seen: dict[str, tuple[str, Pair]] = {}
        for pair in self._listing.pairs(Unmatched()):
            name = name_of(pair)
            if hash(name) not in alike:
                continue
            where = self._listing.where(pair)
            if name in seen:
                raise _clash(*seen[name], where, pair, self._listing.made_of)
            seen[name] = where, pair


def _clash(earlier: str, first: Pair, where: str, second: Pair, made_of: str) -> PairsError:
    if first.id == second.id:
        made = f" (the row says none, so it is the path of its {made_of}: add a column id)"
        return PairsError(
            f"{where}: has the id {shortened(second.id)!r}, as {earlier} has: ids must differ"
            f"{made if made_of else ''}"
        )
    if second.output is not None and second.output == first.output:
        return PairsError(
            f"{where}: output {shortened(second.output)!r} is also that of "
            f"{shortened(first.id)!r} ({earlier}): outputs must differ"
        )
    one, other = shortened(second.id), shortened(first.id)
    look_alike = normalize("NFC", one) == normalize("NFC", other)
    one, other = (f"{id!r}{f', {id!a},' if look_alike else ''}" for id in (one, other))
    return PairsError(
        f"{where}: {one} and {other} ({earlier}) would have one "
        "output file where a system does not tell case or Unicode forms apart: rename one, "
        "give a manifest with a column 'output', or say --pack"
    )
