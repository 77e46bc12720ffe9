"""The rows of a manifest: .csv and .jsonl line by line, .parquet batch by batch, never whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import BufferedReader
from operator import itemgetter
from typing import Any, NamedTuple

from fusecli.errors import PairsError, shortened
from fusecli.features.file import open_regular
from fusecli.features.formats.base import one_line


class Row(NamedTuple):
    """One line of a manifest: a value of every known column, "" where there is none.

    Attributes:
        image, text: paths of the features.
        id: of the pair.
        output: where its result goes.
        image_mask, text_mask: files of the masks, `FILE` or `FILE:KEY`.
        image_key, text_key: keys of the tensors in their files.
        image_row, text_row: samples of stacks, whole numbers from 0 as text.
        attention_mask: file of which text token may attend to which image token, as for masks.
    """

    image: str
    text: str
    id: str
    output: str
    image_mask: str
    text_mask: str
    image_key: str
    text_key: str
    image_row: str
    text_row: str
    attention_mask: str


COLUMNS = Row._fields
REQUIRED = COLUMNS[:2]
_ROWS = ("image_row", "text_row")


class Record(NamedTuple):
    """A row of a manifest with its number in the file.

    Attributes:
        number: of the line (.csv, .jsonl) or row (.parquet), from 1.
        row: the known columns.
        extra: the columns that were asked for besides, in that order; "" where there is none.
    """

    number: int
    row: Row
    extra: tuple[str, ...]


# Two paths, two keys and an id are a thousand characters; a line without an end is not text.
_LONGEST_LINE = 1 << 18
_BATCH = 4096
_BOM = b"\xef\xbb\xbf"


def csv_rows(file: str, extra: tuple[str, ...], unused: set[str]) -> Iterator[Record]:
    """Every record of a .csv file, whose first line names the columns.

    Args:
        file: the path.
        extra: columns that are read besides the known ones.
        unused: receives the names of columns that are not read.

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
            _check_columns(names, extra, file)
            if any(name[:1] == " " for name in header):  # `image, text`: values are written so too
                above = reader.line_num
                reader = csv.reader(lines, strict=True, skipinitialspace=True)
            wanted = (*COLUMNS, *extra)
            unused.update(name for name in names if name not in wanted)
            # A column that is not there has the place of the "" put behind every record.
            place = [names.index(name) if name in names else len(names) for name in wanted]
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
                yield _record(above + reader.line_num, pick(record))
        except csv.Error as error:
            line = above + reader.line_num
            raise PairsError(f"{file}: line {line}: {one_line(error)}") from None


def jsonl_rows(file: str, extra: tuple[str, ...], unused: set[str]) -> Iterator[Record]:
    """Every line of a .jsonl file; see `csv_rows`."""
    wanted = (*COLUMNS, *extra)
    missing = set(extra)
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
            missing -= record.keys()
            yield _record(number, _texts(tuple(map(record.get, wanted)), wanted, where))
            if len(unused) < 16:
                unused.update(record.keys() - set(wanted))
    if missing:
        raise PairsError(f"{file}: no line says {sorted(missing)[0]}")


def parquet_rows(file: str, extra: tuple[str, ...], unused: set[str]) -> Iterator[Record]:
    """Every row of a .parquet file; see `csv_rows`.

    Raises:
        PairsError: also where pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise PairsError(
            f"{file}: reading .parquet needs pyarrow: pip install '.[parquet]' in a "
            "clone of fusecli"
        ) from None
    with open_regular(file) as handle:
        try:
            table = parquet.ParquetFile(handle)
            schema = table.schema_arrow
            _check_columns(schema.names, extra, file)
            wanted = (*COLUMNS, *extra)
            unused.update(name for name in schema.names if name not in wanted)
            present = [name for name in wanted if name in schema.names]
            for name in present:
                _check_type(schema.field(name).type, name, file, pyarrow.types)
            number = 0
            for batch in table.iter_batches(_BATCH, columns=present, use_threads=False):
                none = [None] * len(batch)
                columns = [
                    batch.column(name).to_pylist() if name in present else none for name in wanted
                ]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield _record(number, _texts(values, wanted, f"{file}: row {number}"))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise PairsError(f"{file}: is not a sound .parquet file: {one_line(error)}") from None


def _record(number: int, values: tuple[str, ...]) -> Record:
    return Record(number, Row(*values[: len(COLUMNS)]), values[len(COLUMNS) :])


def _check_columns(names: list[str], extra: tuple[str, ...], file: str) -> None:
    missing = [name for name in (*REQUIRED, *extra) if name not in names]
    if missing:
        found = shortened(", ".join(names), 200) or "none"
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            found += ": expected commas between them"
        raise PairsError(
            f"{file}: has no column {' and no column '.join(missing)}: columns are {found}"
        )
    for name in (*COLUMNS, *extra):
        if names.count(name) > 1:
            raise PairsError(f"{file}: has {names.count(name)} columns called {name}")


def _check_type(type: Any, name: str, file: str, types: Any) -> None:
    value = type.value_type if types.is_dictionary(type) else type
    text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    whole = types.is_integer(value) and (name in ("id", *_ROWS) or name not in COLUMNS)
    # Tables made with pandas hold 3.0 where some rows of a column of numbers are empty.
    number = types.is_floating(value) and name in _ROWS
    number |= name not in COLUMNS and (types.is_floating(value) or types.is_boolean(value))
    if not (text or types.is_null(value) or whole or number):
        expected = "whole numbers" if name in _ROWS else "text"
        lists = types.is_list(value) or types.is_large_list(value)
        if name in COLUMNS and (lists or types.is_fixed_size_list(value)):
            expected += ", the path of a file: save the numbers with numpy.save, and name the files"
        raise PairsError(f"{file}: column {name} holds {type}, expected {expected}")


def _texts(values: tuple[Any, ...], names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The values as text; null is no value.

    An id and a row may be whole numbers, and a column that was asked for besides may hold any
    number or truth value.
    """
    texts = []
    for name, value in zip(names, values, strict=True):
        if type(value) is str:
            texts.append(value)
        elif value is None:
            texts.append("")
        elif type(value) is int and (name == "id" or name in _ROWS):
            texts.append(str(value))
        elif type(value) is float and name in _ROWS:
            texts.append(f"{value:.0f}" if value.is_integer() else str(value))
        elif name not in COLUMNS and isinstance(value, int | float):
            texts.append(str(value).lower() if isinstance(value, bool) else str(value))
        else:
            expected = "a whole number" if name in _ROWS else "text"
            raise PairsError(f"{where}: {name} is {_kind(value)}, expected {expected}")
    return tuple(texts)


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
            raise PairsError(
                f"{file}: line {number}: is not UTF-8 text: save the file as UTF-8"
            ) from None


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
