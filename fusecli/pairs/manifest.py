"""`--manifest`: a table that names the files of every pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from fusecli.errors import PairsError, UsageError, shortened
from fusecli.features.formats.table import READABLE_ENDINGS, WRITABLE_ENDINGS
from fusecli.features.select import file_and_key
from fusecli.pairs.ids import LONGEST_ID, relative_path
from fusecli.pairs.manifest_rows import Record, Row, csv_rows, jsonl_rows, parquet_rows
from fusecli.pairs.pair import Pair, PairOptions, Place, Unmatched

_LONGEST_NUMBER = 18  # digits of a row, within what 64 bits count

_ROWS: dict[str, Callable[[str, tuple[str, ...], set[str]], Iterator[Record]]] = {
    ".csv": csv_rows,
    ".jsonl": jsonl_rows,
    ".parquet": parquet_rows,
}


class Manifest:
    """Pairs as the rows of a table name them, in its order.

    Args:
        options: `manifest` is a .csv, .jsonl or .parquet file, paths in it are relative to its
            folder; and what is asked of outputs.

    Raises:
        UsageError: another ending.
    """

    def __init__(self, options: PairOptions) -> None:
        file = options.manifest
        assert file is not None
        ending = os.path.splitext(file)[1].lower()
        if ending not in _ROWS:
            raise UsageError(
                f"--manifest {file}: expected {', '.join(_ROWS)}, found {ending or 'no ending'}"
            )
        self.notes: list[str] = []
        self.made_of = ""
        self._file, self._rows, self._options = file, _ROWS[ending], options
        self._unit = "row" if ending == ".parquet" else "line"
        self._number = 0
        folder = os.path.dirname(file)
        self._folder = os.path.join(folder, "") if folder else ""

    def pairs(self, unmatched: Unmatched) -> Iterator[Pair]:
        """The pairs in the order of the rows; whether their files exist is not asked here."""
        unused: set[str] = set()
        overruled, ending = 0, self._options.ending
        for record in self._rows(self._file, self._options.extra_columns, unused):
            self._number = record.number
            pair = self._pair(record)
            if pair.output is not None:
                overruled += not ending or not pair.output.lower().endswith(ending)
            yield pair
        self.notes = list(self._notes(unused, overruled))

    def where(self, pair: Pair) -> str:
        """The manifest and the row that was read last."""
        return f"{self._file}: {self._unit} {self._number}"

    def _notes(self, unused: set[str], overruled: int) -> Iterator[str]:
        o = self._options
        if unused:
            named = ", ".join(shortened(name, 40) for name in sorted(unused)[:8])
            yield f"{self._file}: not used: {named}"
        if overruled and not o.ending:
            yield f"{self._file}: not used: output, which only names files of single pairs"
        elif overruled and o.ending_said:
            yield f"{self._file}: output says another format than --format in {overruled:,} rows"

    def _pair(self, record: Record) -> Pair:
        row = record.row
        if not row.image or not row.text:
            raise self._wrong(f"has no {'text' if row.image else 'image'}")
        if row.output:
            self._check_output(row.output)
        elif self._options.ending in self._options.refused:
            raise self._wrong(f"has no output, and {self._options.refused[self._options.ending]}")
        self.made_of = "" if row.id else "output" if row.output else "text"
        text_row = self._row_number("text_row", row.text_row)
        image_row = self._row_number("image_row", row.image_row)
        id = row.id or os.path.splitext(row.output)[0] or _default_id(row)
        if len(id) > LONGEST_ID:
            raise self._wrong(f"has an id of {len(id):,} characters, at most {LONGEST_ID:,} serve")
        if not id.isascii():
            try:
                id.encode()
            except UnicodeEncodeError:
                raise self._wrong(f"the id {id!r} is not Unicode text") from None
        return Pair(
            id,
            Place(self._path(row.image), row.image_key or None, image_row),
            Place(self._path(row.text), row.text_key or None, text_row),
            self._mask(row.image_mask),
            self._mask(row.text_mask),
            row.output or None,
            record.extra,
            self._mask(row.attention_mask),
        )

    def _mask(self, named: str) -> Place | None:
        """Where the mask lies that a row names as `FILE` or `FILE:KEY`."""
        if not named:
            return None
        path = self._path(named)
        return Place(*file_and_key(path)) if ":" in named else Place(path, None)

    def _row_number(self, name: str, text: str) -> int | None:
        if not text:
            return None
        # Tables made with pandas hold 3.0 where some rows of a column of numbers are empty.
        digits = text.removesuffix(".0")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_NUMBER):
            raise self._wrong(f"{name} is {shortened(text)!r}, expected a whole number from 0")
        return int(digits)

    def _path(self, path: str) -> str:
        return os.path.join(self._folder, path) if self._folder else path

    def _check_output(self, output: str) -> None:
        stem, ending = os.path.splitext(output)
        if ending.lower() not in WRITABLE_ENDINGS:
            raise self._wrong(
                f"output {shortened(output)!r} ends in {ending or 'nothing'}, "
                f"expected {', '.join(WRITABLE_ENDINGS)}"
            )
        if self._options.ending and ending.lower() in self._options.refused:
            refused = self._options.refused[ending.lower()]
            raise self._wrong(f"output {shortened(output)!r}: {refused}")
        if relative_path(stem) != stem:
            raise self._wrong(f"output {shortened(output)!r} {_fault(stem)}")

    def _wrong(self, what: str) -> PairsError:
        return PairsError(f"{self._file}: {self._unit} {self._number}: {what}")


def _default_id(row: Row) -> str:
    """The text's path without its ending, and the key and the row if there are any.

    If one text belongs to several rows of a stack of images, the image's row is part of the name.
    """
    stem, ending = os.path.splitext(row.text)
    if ending.lower() not in READABLE_ENDINGS:
        stem = row.text
    if "./" in stem or "//" in stem or stem[0] == "/":
        stem = "/".join(part for part in stem.split("/") if part not in ("", ".", ".."))
    number = (row.text_row or row.image_row).removesuffix(".0")
    return "/".join(part for part in (stem, row.text_key, number and str(int(number))) if part)


def _fault(stem: str) -> str:
    """What is wrong with an output that is not its own path."""
    parts = stem.split("/")
    if not parts[0]:
        return "is no relative path: expected one inside the output folder"
    if not all(parts):
        return "has an empty part: expected one / between two names"
    for part in parts:
        if part[0] == ".":
            return f"has the part {shortened(part)!r}: expected no .., . or hidden names"
        if relative_path(part) != part:
            return (
                f"has the part {shortened(part)!r}, which not every system takes: expected no "
                "reserved name or character, no dot or space at its end, and at most 200 bytes"
            )
    for part in parts[:-1]:
        if relative_path(f"{part}/x") != f"{part}/x":
            return f"has the folder {shortened(part)!r}: expected none that is called as a file is"
    return "is too long for some systems: expected at most 1,024 bytes"
