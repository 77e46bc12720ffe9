"""Pairs that a manifest names: .csv, .jsonl and .parquet, and what is wrong with a row."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusecli.errors import FeatureFileError, FuseError, PairsError, UsageError
from fusecli.pairs import manifest_rows as rows
from fusecli.pairs.manifest_rows import COLUMNS
from fusecli.pairs.open import Pair, PairOptions, PairSource, Place, open_pairs

ENDINGS = ("csv", "jsonl", "parquet")
Record = dict[str, str | None]


def write(name: str, records: list[Record]) -> None:
    """The records as a manifest of the ending's kind."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    if name.endswith(".csv"):
        with open(name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(records)
    elif name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        table = {key: [record.get(key) for record in records] for key in columns}
        pq.write_table(pa.table(table), name)


def opened(manifest: str, **options: object) -> PairSource:
    return open_pairs(PairOptions(manifest=manifest, **options))


def refusal(name: str, content: str | bytes, kind: type[FuseError] = PairsError) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(kind) as refused:
        opened(name)
    message = str(refused.value)
    assert message.startswith(f"{name}: ")
    return message.removeprefix(f"{name}: ")


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_pairs_in_their_order(folder: Path, ending: str) -> None:
    (folder / "m").mkdir()
    records: list[Record] = [
        {"image": "i/2.npy", "text": "/abs/2.npy", "id": "two", "output": "x/2.safetensors"},
        {"image": "i/1.npz", "text": "t/1.npz", "id": "one", "image_key": "a", "text_key": "b"},
        {"image": "i/1.npy", "text": "t/0.npy", "image_mask": "m/1.npy", "text_mask": "m/2.npy"},
    ]
    write(f"m/pairs.{ending}", records)
    source = opened(f"m/pairs.{ending}")
    expected = [
        Pair("two", Place("m/i/2.npy", None), Place("/abs/2.npy", None), None, None,
             "x/2.safetensors"),
        Pair("one", Place("m/i/1.npz", "a"), Place("m/t/1.npz", "b"), None, None, None),
        Pair("t/0", Place("m/i/1.npy", None), Place("m/t/0.npy", None),
             Place("m/m/1.npy", None), Place("m/m/2.npy", None), None),
    ]  # fmt: skip
    assert list(source) == list(source) == expected
    assert source.total == 3
    assert source.unmatched.total == 0
    assert source.notes == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_of_stacks_and_further_columns(folder: Path, ending: str) -> None:
    """Ids of rows that share a file differ without a column of ids."""
    records: list[Record] = [
        {"image": "i.npy", "image_row": "3", "text": "t.npy", "text_row": "7", "label": "cat"},
        {"image": "i.npy", "image_row": "3", "text": "t.npy", "text_row": "8", "label": ""},
        {"image": "i.npy", "image_row": "4", "text": "u.npz", "text_key": "k", "text_row": "0"},
        {"image": "i.npy", "image_row": "5", "text": "v.npy", "split": "train", "label": "dog"},
    ]
    write(f"m.{ending}", records)
    source = opened(f"m.{ending}", extra_columns=("split", "label"))
    images = [Place("i.npy", None, row) for row in (3, 3, 4, 5)]
    texts = [Place("t.npy", None, 7), Place("t.npy", None, 8), Place("u.npz", "k", 0)]
    texts.append(Place("v.npy", None))
    ids = ["t/7", "t/8", "u/k/0", "v/5"]
    extra = [("", "cat"), ("", ""), ("", ""), ("train", "dog")]
    expected = [
        Pair(id, image, text, None, None, None, more)
        for id, image, text, more in zip(ids, images, texts, extra, strict=True)
    ]
    assert list(source) == expected
    assert source.notes == []
    assert opened(f"m.{ending}").notes == [f"m.{ending}: not used: label, split"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_further_column_that_is_not_there_is_refused(folder: Path, ending: str) -> None:
    write(f"m.{ending}", [{"image": "a.npy", "text": "b.npy"}])
    with pytest.raises(PairsError, match="label"):
        opened(f"m.{ending}", extra_columns=("label",))


def test_numbers_in_tables_are_rows_and_labels(folder: Path) -> None:
    line = {"image": "i.npy", "text": "t.npy", "image_row": 3, "text_row": 2.0, "label": 0.5}
    Path("m.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"text_row": 1}) + "\n")
    columns = {name: [value, value] for name, value in line.items()} | {"text_row": [2.0, 1.0]}
    pq.write_table(pa.table(columns), "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        pairs = list(opened(name, extra_columns=("label",)))
        assert [pair.image.row for pair in pairs] == [3, 3]
        assert [pair.text.row for pair in pairs] == [2, 1]
        assert [pair.extra for pair in pairs] == [("0.5",), ("0.5",)]
        assert [pair.id for pair in pairs] == ["t/2", "t/1"]


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "1e3", "9" * 30, " "])
def test_a_row_that_is_no_whole_number_is_refused(folder: Path, value: str) -> None:
    message = refusal("m.csv", f"image,text,image_row\na.npy,b.npy,{value}\n")
    assert message == f"line 2: image_row is {value!r}, expected a whole number from 0"


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
ROWS = st.one_of(st.just(""), st.integers(0, 10**12).map(str))
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"image": VALUES.filter(bool), "text": VALUES.filter(bool)},
        optional={
            name: ROWS if name.endswith("_row") else VALUES
            for name in COLUMNS
            if name not in ("image", "text", "output")
        },
    ),
    min_size=1,
    max_size=6,
    unique_by=(lambda record: record.get("id", "").casefold(),),
)


@pytest.mark.slow
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(records=RECORDS)
def test_csv_jsonl_and_parquet_give_the_same_pairs(folder: Path, records: list[Record]) -> None:
    results: list[object] = []
    for ending in ENDINGS:
        write(f"m.{ending}", records)
        try:
            results.append(list(opened(f"m.{ending}", ending="")))
        except PairsError as error:  # two ids that are one by default
            results.append(str(error).partition("has the id")[1])
    assert results[0] == results[1] == results[2] != ""


@pytest.mark.parametrize(
    ("record", "id"),
    [
        ({"text": "t/a/1.npy"}, "t/a/1"),
        ({"text": "t/a/1.dat"}, "t/a/1.dat"),
        ({"text": "../t//./1.npy"}, "t/1"),
        ({"text": "/data/t/1.safetensors", "text_key": "k"}, "data/t/1/k"),
        ({"text": "t.npy", "output": "o/1.npy"}, "o/1"),
        ({"text": "t.npy", "output": "o/1.npy", "id": "x"}, "x"),
        ({"text": "t.npy", "id": "../../x"}, "../../x"),
        ({"text": ".."}, ".."),
    ],
)
def test_id_is_said_or_made_of_the_output_or_the_text(
    folder: Path, record: Record, id: str
) -> None:
    write("m.csv", [{"image": "i.npy", **record}])
    assert [pair.id for pair in opened("m.csv")] == [id]


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_that_are_not_known_are_said(folder: Path, ending: str) -> None:
    write(f"m.{ending}", [{"image": "i", "text": "t", "split": "x", "caption": "y"}])
    assert opened(f"m.{ending}").notes == [f"m.{ending}: not used: caption, split"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_column_is_refused_with_those_there_are(folder: Path, ending: str) -> None:
    write(f"m.{ending}", [{"images": "i", "text": "t"}])
    with pytest.raises(PairsError) as refused:
        opened(f"m.{ending}")
    if ending == "jsonl":
        assert str(refused.value) == "m.jsonl: line 1: has no image"
    else:
        assert str(refused.value) == (f"m.{ending}: has no column image: columns are images, text")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"id": "x"}, {"id": "x"}, "has the id 'x', as {first} has: ids must differ"),
        (
            {"text": "t"},
            {"text": "t"},
            "has the id 't', as {first} has: ids must differ (the row "
            "says none, so it is the path of its text: add a column id)",
        ),
        (
            {"output": "x.npy"},
            {"output": "x.npz"},
            "has the id 'x', as {first} has: ids must "
            "differ (the row says none, so it is the path of its output: add a column id)",
        ),
        (
            {"id": "a", "output": "x.npy"},
            {"id": "b", "output": "x.npy"},
            "output 'x.npy' is also that of 'a' ({first}): outputs must differ",
        ),
        ({"id": "x"}, {"id": "X"}, "'X' and 'x' ({first}) would have one output file"),
        (
            {"id": "\u00e9"},
            {"id": "e\u0301"},
            "'e\u0301', 'e\\u0301', and '\u00e9', '\\xe9', ({first}) would",
        ),
        ({"id": "a", "output": "x.npy"}, {"id": "X"}, "'X' and 'a' ({first}) would have one"),
        ({"id": "a", "output": "x.npy"}, {"id": "b", "output": "X.NPY"}, "'b' and 'a' ({first})"),
    ],
)
def test_two_rows_of_one_id_or_output_are_refused(
    folder: Path, ending: str, one: Record, other: Record, message: str
) -> None:
    rows: list[Record] = [{"image": "i", "text": f"t{n}", "id": f"{n}"} for n in range(5)]
    base: Record = {"image": "i", "text": "t"}
    write(f"m.{ending}", [rows[0], base | one, *rows[1:], base | other])
    where = {"csv": "line {}", "jsonl": "line {}", "parquet": "row {}"}[ending]
    first, second = (where.format(n + (ending == "csv")) for n in (2, 7))
    with pytest.raises(PairsError) as refused:
        opened(f"m.{ending}")
    expected = message.replace("{first}", f"m.{ending}: {first}")
    assert str(refused.value).startswith(f"m.{ending}: {second}: {expected}")


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("../x.npy", "has the part '..': expected no .., . or hidden names"),
        ("/x.npy", "is no relative path"),
        ("a/../x.npy", "has the part '..'"),
        ("a//x.npy", "has an empty part"),
        (".x.npy", "has the part '.x'"),
        ("a\\x.npy", "has the part 'a\\\\x', which not every system takes"),
        ("nul.npy", "has the part 'nul', which not every system takes"),
        ("x:y.npy", "has the part 'x:y', which"),
        ("a.npy/x.npy", "has the folder 'a.npy': expected none that is called as a file is"),
        ("x", "ends in nothing, expected .npy"),
        ("x.txt", "ends in .txt, expected .npy"),
        (".npy", "ends in nothing"),
        ("x .npy", "has the part 'x ', which"),
        ("a\nb.npy", "has the part 'a\\nb', which"),
        (f"{'x' * 300}.npy", "has the part 'xxx"),
        (f"{'x/' * 600}x.npy", "is too long for some systems"),
    ],
)
def test_output_that_leaves_the_folder_or_some_system_refuses(
    folder: Path, output: str, why: str
) -> None:
    write("m.jsonl", [{"image": "i", "text": "t", "output": output}])
    with pytest.raises(PairsError) as refused:
        opened("m.jsonl")
    said = str(refused.value)
    assert said.startswith("m.jsonl: line 1: output '")
    assert f"' {why}" in said


HEAD = "image,text\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty, expected a first line such as image,text"),
        (HEAD, None),
        ("\n", "is empty, expected a first line such as image,text"),
        ("image;text\na;b\n", "has no column image and no column text: columns are image;text: "
         "expected commas between them"),
        ("a, text\n", "has no column image: columns are a, text"),
        ("image, text\n\na, b\nc\n", "line 4: has 1 values, expected 2 (image, text)"),
        ('image, text\na, "b"c\n', "line 2: ',' expected after"),
        ("image,text,image\na,b,c\n", "has 2 columns called image"),
        (HEAD + "a,b\nc\n", "line 3: has 1 values, expected 2 (image, text)"),
        (HEAD + "a,b,c\n", "line 2: has 3 values, expected 2 (image, text)"),
        (HEAD + "a,\n", "line 2: has no text"),
        (HEAD + ",b\n", "line 2: has no image"),
        (HEAD + 'a,"b\n', "line 2: unexpected end of data"),
        (HEAD + 'a,"b"c\n', "line 2: ',' expected after '\"'"),
        (HEAD + "a\0,b\n", "line 2: holds NUL bytes, expected UTF-8 text"),
        (HEAD + "a,b\r", None),
        (b"\xff\xfei\0m\0", "line 1: holds NUL bytes, expected UTF-8 text"),
        (HEAD.encode() + b"caf\xe9,b\n", "line 2: is not UTF-8 text"),
        (HEAD + "a," + "b" * 200_000 + "\n", "line 2: field larger than field limit (131072)"),
        (HEAD + "a," + "b" * 300_000 + "\n", "line 2: is longer than 262,144 bytes"),
        (HEAD + f"a,b\n{'x' * 3000},b,id\n", "line 3: has 3 values"),
        ("image,text,id\na,b," + "x" * 1025, "line 2: has an id of 1,025 characters, at most"),
        ("image,text,id\na,b,\U0001f600\n", None),
    ],
)  # fmt: skip
def test_csv_that_is_damaged_names_the_line(
    folder: Path, content: str | bytes, message: str | None
) -> None:
    if message is not None:
        assert refusal("m.csv", content).startswith(message)
    elif content == HEAD:
        Path("m.csv").write_text(HEAD)
        with pytest.raises(PairsError, match=r"^no pairs: m.csv has no rows$"):
            opened("m.csv")
    else:
        assert isinstance(content, str)
        Path("m.csv").write_bytes(content.encode())
        assert opened("m.csv").total == 1


def test_csv_with_bom_quotes_newlines_and_blank_lines(folder: Path) -> None:
    content = '\ufeffimage , text,id\r\n"a, b.npy","say ""x"".npy",1\r\n\r\n"two\nlines",t,2\r\n'
    Path("m.csv").write_bytes(content.encode())
    assert [(pair.image.file, pair.text.file, pair.id) for pair in opened("m.csv")] == [
        ("a, b.npy", 'say "x".npy', "1"),
        ("two\nlines", "t", "2"),
    ]


def test_csv_with_spaces_behind_its_commas(folder: Path) -> None:
    Path("m.csv").write_text('image, text, id\na.npy, b c.npy, " 1"\n\nd.npy,e.npy,2\n')
    assert [(pair.image.file, pair.text.file, pair.id) for pair in opened("m.csv")] == [
        ("a.npy", "b c.npy", " 1"),
        ("d.npy", "e.npy", "2"),
    ]
    Path("m.csv").write_text("image,text\na.npy, b.npy\n")
    assert [pair.text.file for pair in opened("m.csv")] == [" b.npy"]


def line(**fields: object) -> str:
    return json.dumps({"image": "i", "text": "t", **fields}) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]\n", "line 1: is a list, expected an object"),
        ("null\n", "line 1: is null, expected an object"),
        (line() + "{\n", "line 2: is not JSON: Expecting property name"),
        (line() + '{"image": "i", "te', "line 2: is not JSON: Unterminated string"),
        ("\n" + line() + line(image={"path": "x"}), "line 3: image is an object, expected text"),
        (line(text=["t"]), "line 1: text is a list, expected text"),
        (line(id=1.5), "line 1: id is a number, expected text"),
        (line(id=True), "line 1: id is true, expected text"),
        (line(image_key=3), "line 1: image_key is a number, expected text"),
        (line(text=None), "line 1: has no text"),
        (line(id="\ud800"), "line 1: the id '\\ud800' is not Unicode text"),
        ("[" * 100_000, "line 1: is not JSON: maximum recursion depth"),
        ('{"id": ' + "9" * 5000 + "}", "line 1: is not JSON: Exceeds the limit"),
        ("x" * 300_000, "line 1: is longer than 262,144 bytes"),
        (b'{"image": "\xff"}', "line 1: is not UTF-8 text"),
        (b"\0", "line 1: holds NUL bytes"),
    ],
)
def test_jsonl_that_is_damaged_names_the_line(
    folder: Path, content: str | bytes, message: str
) -> None:
    assert refusal("m.jsonl", content).startswith(message)


def test_jsonl_takes_whole_numbers_as_ids_and_a_bom(folder: Path) -> None:
    Path("m.jsonl").write_bytes(("\ufeff" + line(id=7) + "  \n" + line(id="8")).encode())
    assert [pair.id for pair in opened("m.jsonl")] == ["7", "8"]


def test_parquet_of_other_types(folder: Path) -> None:
    text = pa.array(["t1", "t2"]).dictionary_encode()
    image = pa.array(["i1", "i2"], pa.large_string())
    table = {"image": image, "text": text, "id": [7, 8], "output": pa.nulls(2)}
    pq.write_table(pa.table(table), "m.parquet")
    assert [(pair.id, pair.image.file, pair.text.file) for pair in opened("m.parquet")] == [
        ("7", "i1", "t1"),
        ("8", "i2", "t2"),
    ]
    for column, holds in (("image", [1, 2]), ("text", [["a"], ["b"]]), ("id", [0.5, 1.5])):
        pq.write_table(pa.table(table | {column: holds}), "m.parquet")
        with pytest.raises(PairsError, match=rf"^m.parquet: column {column} holds .*expected text"):
            opened("m.parquet")


def test_parquet_takes_whole_numbers_and_null_as_ids(folder: Path) -> None:
    text = {"image": ["i"] * 3, "text": ["t1", "t2", "t3"]}
    pq.write_table(pa.table(text | {"id": pa.array([2**53 + 1, None, 8])}), "m.parquet")
    assert [pair.id for pair in opened("m.parquet")] == ["9007199254740993", "t2", "8"]


def test_parquet_row_without_a_value_is_named(folder: Path) -> None:
    pq.write_table(pa.table({"image": ["i"] * 5000, "text": ["t"] * 4999 + [None]}), "m.parquet")
    with pytest.raises(PairsError, match=r"^m.parquet: row 5000: has no text$"):
        opened("m.parquet")


def test_parquet_that_is_damaged_is_refused(folder: Path) -> None:
    """Cut anywhere, or with any byte changed, it is read or refused in one line."""
    records: list[Record] = [{"image": f"i{n}", "text": f"t{n}"} for n in range(200)]
    write("whole.parquet", records)
    whole = Path("whole.parquet").read_bytes()
    for cut in range(0, len(whole), 37):
        assert refusal("m.parquet", whole[:cut]).startswith("is not a sound .parquet file: ")
    assert refusal("m.parquet", b"PAR1").startswith("is not a sound .parquet file: ")
    refused: list[str] = []
    for place in range(0, len(whole), 29):
        Path("m.parquet").write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            opened("m.parquet")
        except PairsError as error:
            refused.append(str(error))
    assert refused
    assert "\n" not in "".join(refused)


def test_parquet_without_pyarrow_names_the_extra(folder: Path) -> None:
    write("m.parquet", [{"image": "i", "text": "t"}])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from fusecli.pairs.open import *\n"
        "try: open_pairs(PairOptions(manifest='m.parquet'))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == (
        "m.parquet: reading .parquet needs pyarrow: pip install '.[parquet]' in a clone "
        "of fusecli\n"
    ), done.stderr


@pytest.mark.parametrize("ending", ENDINGS)
def test_manifest_that_is_not_there(folder: Path, ending: str) -> None:
    with pytest.raises(FeatureFileError, match=rf"^m.{ending}: no such file$"):
        opened(f"m.{ending}")


def test_manifest_excludes_other_sources_and_endings(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--manifest m.tsv: expected .csv, .jsonl, .parquet"):
        opened("m.tsv")
    for other in ({"images": "i"}, {"text_pattern": "{id}"}, {"keyed": True}):
        with pytest.raises(UsageError, match="--manifest names the files"):
            opened("m.csv", **other)


def peak(rows: int) -> int:
    """The most that is allocated while a manifest is opened and gone through."""
    Path("m.csv").write_text(HEAD + "".join(f"{n}.npy,{n}.npy\n" for n in range(rows)))
    tracemalloc.start()
    assert sum(1 for _ in opened("m.csv")) == rows
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.slow
def test_no_more_is_held_than_a_few_bytes_a_pair(folder: Path) -> None:
    peak(100)  # what is made once
    assert (peak(12_000) - peak(2_000)) / 10_000 < 40


@pytest.mark.slow
def test_only_a_part_of_a_manifest_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pair is there when a few lines are read, whatever follows."""
    content = (HEAD + "".join(f"{n},{n}\n" for n in range(50_000))).encode()
    Path("m.csv").write_bytes(content)
    source = opened("m.csv")
    read: list[int] = []
    lines = rows._lines

    def counted(*arguments: object) -> object:
        for number, text in enumerate(lines(*arguments)):
            read.append(number)
            yield text

    monkeypatch.setattr(rows, "_lines", counted)
    next(iter(source))
    assert len(read) == 2


def test_a_column_of_lists_in_parquet_says_what_is_expected(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"image": ["i.npy"], "text": ["t.npy"], "image_mask": [[1, 1, 0]]}
    parquet.write_table(pyarrow.table(table), "m.parquet")
    with pytest.raises(
        PairsError, match=r"column image_mask holds list<.*>, expected text, the path of a file: sa"
    ):
        open_pairs(PairOptions(manifest="m.parquet"))
    parquet.write_table(pyarrow.table({**table, "image_mask": ["m.npy"]}), "m.parquet")
    (pair,) = open_pairs(PairOptions(manifest="m.parquet"))
    assert pair.image_mask is not None
    assert pair.image_mask.file == "m.npy"


def test_spaces_around_a_path_are_pointed_out(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.ones((3, 8), np.float32))
    np.save("b.npy", np.ones((4, 8), np.float32))
    (tmp_path / "m.csv").write_text("id,image,text\n1,a.npy, b.npy\n")
    done = cli("batch", "--manifest", "m.csv", "-o", "out")
    assert done.code != 0
    assert " b.npy: no such file: its path has spaces around it" in done.err
