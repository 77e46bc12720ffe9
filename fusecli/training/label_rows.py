"""The rows of a table of labels: .csv, .jsonl or .parquet, a dict a row."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from fusecli.errors import PairsError, UsageError, shortened
from fusecli.features.file import open_regular
from fusecli.features.formats.base import one_line

ID = "id"
# A label for each of a million tokens; a line without an end is not text.
_LONGEST_LINE = 1 << 24
_BATCH = 4096


def read_rows(file: str, option: str = "--labels") -> Iterator[dict[str, Any]]:
    """The rows of a table, in their order.

    Args:
        file: the path.
        option: that named it, for messages.

    Raises:
        UsageError: another ending.
        PairsError: the file is damaged, or has no column `id`.
    """
    ending = os.path.splitext(file)[1].lower()
    if ending not in _READERS:
        raise UsageError(
            f"{option} {file}: expected {', '.join(_READERS)}, found {ending or 'no ending'}"
        )
    return _READERS[ending](file)


def _csv(file: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(_lines(file), strict=True, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_columns(names, file)
        for record in reader:
            if not record:
                continue
            if len(record) != len(names):
                raise PairsError(
                    f"{file}: line {reader.line_num}: has {len(record)} values, expected "
                    f"{len(names)} ({shortened(', '.join(names), 200)})"
                )
            yield dict(zip(names, record, strict=True))
    except csv.Error as error:
        raise PairsError(f"{file}: line {reader.line_num}: {one_line(error)}") from None


def _jsonl(file: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(file), 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PairsError(f"{file}: line {number}: is not JSON: {one_line(error)}") from None
        if not isinstance(record, dict):
            raise PairsError(f"{file}: line {number}: expected an object such as " + _EXAMPLE)
        if ID not in record:
            raise PairsError(
                f"{file}: line {number}: has no {ID}: expected an object such as {_EXAMPLE}; call "
                f"the pair's id {ID}"
            )
        yield record


_EXAMPLE = '{"id": "a", "label": "yes"}'


def _parquet(file: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise PairsError(
            f"{file}: reading .parquet needs pyarrow: pip install '.[parquet]' in the clone"
        ) from None
    with open_regular(file) as handle:
        try:
            table = parquet.ParquetFile(handle)
            _check_columns(table.schema_arrow.names, file)
            for batch in table.iter_batches(_BATCH, use_threads=False):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise PairsError(f"{file}: is not a sound .parquet file: {one_line(error)}") from None


_READERS: dict[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _lines(file: str) -> Iterator[str]:
    with open_regular(file) as handle:
        number = 0
        while line := handle.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise PairsError(
                    f"{file}: line {number}: is longer than {_LONGEST_LINE:,} bytes: this is no "
                    "table of labels"
                )
            data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                raise PairsError(
                    f"{file}: line {number}: is not UTF-8 text: save the file as UTF-8"
                )
            yield text


def _check_columns(names: list[str], file: str) -> None:
    if not names:
        raise PairsError(f"{file}: is empty, expected a first line such as id,label")
    if ID not in names:
        separator = next(
            (mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]), ""
        )
        if separator:
            raise PairsError(
                f"{file}: is separated by {separator!r}: expected commas, and a first line such as "
                "id,label"
            )
        alike = next((name for name in names if name.lower() == ID), "")
        remedy = f": rename {alike} to {ID}" if alike else f"; call the column of pair ids {ID}"
        raise PairsError(
            f"{file}: has no column {ID}: columns are {shortened(', '.join(names), 200)}{remedy}"
        )
    for name in names:
        if names.count(name) > 1:
            raise PairsError(f"{file}: has {names.count(name)} columns called {shortened(name)}")


def columns_of(file: str, option: str) -> set[str]:
    """The columns of a table, whether or not it has ids.

    Raises:
        UsageError, PairsError: as `read_rows`.
    """
    ending = os.path.splitext(file)[1].lower()
    if ending == ".csv":
        header = next(csv.reader(_lines(file), skipinitialspace=True), [])
        return {name.strip() for name in header}
    if ending == ".jsonl":
        found: set[str] = set()
        for line in _lines(file):
            try:
                record = json.loads(line) if not line.isspace() else {}
            except (ValueError, RecursionError):
                break  # the manifest's own reader says what is wrong
            found.update(record if isinstance(record, dict) else ())
        return found
    if ending == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            return set()  # likewise
        with open_regular(file) as handle:
            try:
                return set(parquet.ParquetFile(handle).schema_arrow.names)
            except (OSError, ValueError):
                return set()
    raise UsageError(
        f"{option} {file}: expected {', '.join(_READERS)}, found {ending or 'nothing'}"
    )
