"""What a run did, in numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from fusecli.batch.store.result import Result
from fusecli.pairs.open import Unmatched
from fusecli.report.report import Diagnosis, Note

_FIRST = 5  # failures that are shown


@dataclass
class Summary:
    """Counts of one run, or of one shard of it.

    Attributes:
        output: the folder.
        shard: "1/8", or None.
        done: pairs that were fused in this run.
        changed: those of them that had been fused before, from inputs that have changed since.
        skipped: pairs that were done already.
        failed: pairs that failed in this run.
        failed_before: pairs that failed in an earlier run and were not tried again.
        unmatched: what has no partner, by side.
        seconds: that the run took.
        diagnoses: by code, how many of the pairs of this run.
        examples: the first diagnosis of each code.
        notes: by code, of how many pairs something was assumed or used without being asked for.
        first_notes: the first note of each code.
        run_diagnoses: what may be wrong with all results of the run, as `code: message`.
        failures: id and reason of the first that failed in this run.
        failures_before: ids of the first that failed in an earlier run; the journals of the output
            folder say why.
        index: path of the index of packs.
        pruned: results that were removed, since their pairs are no longer among the inputs.
    """

    output: str
    shard: str | None = None
    done: int = 0
    changed: int = 0
    skipped: int = 0
    failed: int = 0
    failed_before: int = 0
    unmatched: Unmatched = field(default_factory=Unmatched)
    seconds: float = 0.0
    diagnoses: dict[str, int] = field(default_factory=dict)
    examples: list[Diagnosis] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    first_notes: dict[str, Note] = field(default_factory=dict)
    run_diagnoses: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    failures_before: list[str] = field(default_factory=list)
    index: str | None = None
    pruned: int = 0

    @property
    def rate(self) -> float:
        """Pairs a second, failed ones included."""
        return (self.done + self.failed) / self.seconds if self.seconds else 0.0

    @property
    def all_failed(self) -> int:
        """Pairs that have no result."""
        return self.failed + self.failed_before

    @property
    def seen(self) -> int:
        """Pairs with a known outcome."""
        return self.done + self.failed + self.skipped + self.failed_before

    def add(self, result: Result, changed: bool) -> None:
        """Count one pair; `changed` if it had been fused before, from other inputs."""
        if result.error is not None:
            self.failed += 1
            if len(self.failures) < _FIRST:
                self.failures.append((result.pair.id, result.error))
            return
        self.done += 1
        self.changed += changed
        for code, diagnosis in {found.code: found for found in result.diagnoses}.items():
            if code not in self.diagnoses:
                self.diagnoses[code] = 0
                self.examples.append(diagnosis)
            self.diagnoses[code] += 1
        for code, note in {each.counted_as(self.notes): each for each in result.notes}.items():
            if code not in self.notes:
                self.notes[code] = 0
                self.first_notes[code] = note
            self.notes[code] += 1

    def add_failed_before(self, id: str) -> None:
        """Count one pair that failed in an earlier run and is not tried again."""
        self.failed_before += 1
        if len(self.failures_before) < _FIRST:
            self.failures_before.append(id)

    def to_json(self) -> str:
        """As `--json` prints it."""
        data = asdict(self) | {"unmatched": self.unmatched.counts, "rate": round(self.rate, 1)}
        data["examples"] = [str(diagnosis) for diagnosis in self.examples]
        data["first_notes"] = [str(note) for note in self.first_notes.values()]
        data["seconds"] = round(self.seconds, 3)
        data["failures"] = [{"id": id, "error": error} for id, error in self.failures]
        return json.dumps(data, indent=2) + "\n"

    def lines(self) -> list[str]:
        """The lines that are printed at the end."""
        lines = []
        for diagnosis in self.examples:
            count = self.diagnoses[diagnosis.code]
            lines.append(f"warning: {count:,} {'pair' if count == 1 else 'pairs'}: {diagnosis}")
        for code, note in self.first_notes.items():
            count = self.notes[code]
            lines.append(f"note: {count:,} {'pair' if count == 1 else 'pairs'}: {note}")
        lines += [f"failed: {id}: {error}" for id, error in self.failures]
        if self.failed > len(self.failures):
            more = self.failed - len(self.failures)
            lines.append(f"failed: {more:,} more, see the journal in {self.output}")
        if self.failures_before:
            more = self.failed_before - len(self.failures_before)
            ids = ", ".join(self.failures_before) + (f" and {more:,} more" if more else "")
            lines.append(f"failed before: {ids}: the journal in {self.output} says why")
        counts = [f"{self.done:,} done"]
        if self.changed:
            counts.append(f"{self.changed:,} of them again because their inputs changed")
        for name in ("skipped", "failed"):
            if count := getattr(self, name):
                counts.append(f"{count:,} {name}")
        if self.failed_before:
            counts.append(f"{self.failed_before:,} failed before (--retry-failed does those)")
        if self.unmatched.total:
            counts.append(f"{self.unmatched.total:,} unmatched")
        rate = f", {self.rate:,.0f} pairs/s" if self.done + self.failed else ""
        lines.append(f"{', '.join(counts)}{rate}")
        return lines
