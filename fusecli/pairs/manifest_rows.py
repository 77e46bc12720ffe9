"""The rows of a manifest: .csv and .jsonl line by line, .parquet batch by batch, never whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import BufferedReader
from operator import itemgetter
from typing import Any

from fusecli.errors import PairsError, shortened
from fusecli.features.file import open_regular
from fusecli.features.formats.npy import one_line

COLUMNS = (
    "image",
    "text",
    "id",
    "output",
    "image_mask",
    "text_mask",
    "image_key",
    "text_key",
)
REQUIRED = COLUMNS[:2]

# A value of every column, in their order; "" where there is none.
Row = tuple[str, str, str, str, str, str, str, str]

# Two paths, two keys and an id are a thousand characters; a line without an end is not text.
_LONGEST_LINE = 1 << 18
_BATCH = 4096
_BOM = b"\xef\xbb\xbf"


def csv_rows(file: str, unused: set[str]) -> Iterator[tuple[int, Row]]:
    """Line number and row of every record of a .csv file, whose first line names the columns.

    Args:
        file: the path.
        unused: receives the names of columns that are not known.

    Raises:
        PairsError: a line is not what it should be; the message names it.
    """
    with open_regular(file) as handle:
        lines = _lines(handle, file)
        reader, above = csv.reader(lines, strict=True), 0
        try:
            header = next(reader, [])
            names = [name.strip() for name in header]
            if not names:
                raise PairsError(f"{file}: is empty, expected a first line such as image,text")
            _check_columns(names, file)
            if any(name[:1] == " " for name in header):  # `image, text`: values are written so too
                above = reader.line_num
                reader = csv.reader(lines, strict=True, skipinitialspace=True)
            unused.update(name for name in names if name not in COLUMNS)
            # A column that is not there has the place of the "" put behind every record.
            place = [names.index(name) if name in names else len(names) for name in COLUMNS]
            pick = itemgetter(*place)
            for record in reader:
                if len(record) != len(names):
                    if not record:
                        continue
                    raise PairsError(
                        f"{file}: line {above + reader.line_num}: has {len(record)} values, "
                        f"expected {len(names)} ({', '.join(names)})"
                    )
                record.append("")
                yield above + reader.line_num, pick(record)
        except csv.Error as error:
            line = above + reader.line_num
            raise PairsError(f"{file}: line {line}: {one_line(error)}") from None


def jsonl_rows(file: str, unused: set[str]) -> Iterator[tuple[int, Row]]:
    """Line number and row of every line of a .jsonl file; see `csv_rows`."""
    with open_regular(file) as handle:
        for number, line in enumerate(_lines(handle, file), 1):
            if line.isspace():
                continue
            where = f"{file}: line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise PairsError(f"{where}: is not JSON: {one_line(error)}") from None
            if not isinstance(record, dict):
                raise PairsError(f"{where}: is {_kind(record)}, expected an object")
            values = tuple(map(record.get, COLUMNS))
            yield number, _texts(values, where)
            if len(unused) < 16:
                unused.update(record.keys() - set(COLUMNS))


def parquet_rows(file: str, unused: set[str]) -> Iterator[tuple[int, Row]]:
    """Number and row of every row of a .parquet file; see `csv_rows`.

    Raises:
        PairsError: also where pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise PairsError(
            f"{file}: reading .parquet needs pyarrow: pip install 'fusecli[parquet]'"
        ) from None
    with open_regular(file) as handle:
        try:
            table = parquet.ParquetFile(handle)
            schema = table.schema_arrow
            _check_columns(schema.names, file)
            unused.update(name for name in schema.names if name not in COLUMNS)
            present = [name for name in COLUMNS if name in schema.names]
            for name in present:
                _check_type(schema.field(name).type, name, file, pyarrow.types)
            number = 0
            for batch in table.iter_batches(_BATCH, columns=present, use_threads=False):
                none = [None] * len(batch)
                columns = [
                    batch.column(name).to_pylist() if name in present else none for name in COLUMNS
                ]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, _texts(values, f"{file}: row {number}")
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise PairsError(f"{file}: is not a sound .parquet file: {one_line(error)}") from None


def _check_columns(names: list[str], file: str) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        found = shortened(", ".join(names), 200) or "none"
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            found += ": expected commas between them"
        raise PairsError(
            f"{file}: has no column {' and no column '.join(missing)}: columns are {found}"
        )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise PairsError(f"{file}: has {names.count(name)} columns called {name}")


def _check_type(type: Any, name: str, file: str, types: Any) -> None:
    value = type.value_type if types.is_dictionary(type) else type
    text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    if not (text or types.is_null(value) or (name == "id" and types.is_integer(value))):
        raise PairsError(f"{file}: column {name} holds {type}, expected text")


def _texts(values: tuple[Any, ...], where: str) -> Row:
    """The values as a row; an id may be a whole number, and null is no value."""
    row = []
    for value in values:
        if type(value) is str:
            row.append(value)
        elif value is None:
            row.append("")
        elif type(value) is int and len(row) == COLUMNS.index("id"):
            row.append(str(value))
        else:
            name = COLUMNS[len(row)]
            raise PairsError(f"{where}: {name} is {_kind(value)}, expected text")
    return tuple(row)  # type: ignore[return-value]


def _lines(handle: BufferedReader, file: str) -> Iterator[str]:
    number = 0
    while line := handle.readline(_LONGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > _LONGEST_LINE:
            raise PairsError(
                f"{file}: line {number}: is longer than {_LONGEST_LINE:,} bytes: this is no "
                "list of pairs"
            )
        if b"\0" in line:
            raise PairsError(f"{file}: line {number}: holds NUL bytes, expected UTF-8 text")
        try:
            yield line.decode()
        except UnicodeDecodeError:
            raise PairsError(f"{file}: line {number}: is not UTF-8 text") from None


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, bool):
        return str(value).lower()
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
