"""Labels: what is read, which task they tell, and every kind of bad input in one line."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusecli.errors import PairsError, UsageError
from fusecli.training.encode import Tokens, make_targets, may_be_tags, told_task
from fusecli.training.labels import labels_of_file, labels_of_pairs
from fusecli.training.options import LabelOptions
from fusecli.training.targets import IGNORED

PAIRS = tuple(f"p{number}" for number in range(30))


@pytest.fixture
def table(tmp_path):
    def write(rows, name="labels.csv"):
        path = tmp_path / name
        if name.endswith(".csv"):
            path.write_text("\n".join(rows) + "\n")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)

    return write


def read(path, pairs=PAIRS, **options):
    told = []
    return labels_of_file(LabelOptions(path, **options), pairs, told.append), told


def of_values(values, table, pairs=PAIRS):
    rows = [{"id": pair, "label": value} for pair, value in zip(pairs, values, strict=True)]
    return read(table(rows, "labels.jsonl"), pairs[: len(values)])[0]


def task_of(values, table, tokens=None):
    return told_task(of_values(values, table), tokens)


def tokens(real, stored=None):
    real = np.array(real)
    return Tokens(
        np.arange(real.max()) < real[:, None], real if stored is None else np.array(stored)
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_all_formats_give_the_same_targets(table, ending):
    rows = [
        {"id": pair, "label": "yes" if n % 3 else "no", "group": f"g{n // 2}", "weight": 1 + n % 2}
        for n, pair in enumerate(PAIRS)
    ]
    if ending == "csv":
        rows = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    labels, told = read(table(rows, f"labels.{ending}"))
    targets = make_targets(labels, None)
    assert told == []
    assert targets.task == "classify"
    assert targets.names == ("no", "yes")
    assert targets.values.tolist() == [int(n % 3 > 0) for n in range(30)]
    assert targets.group[:3] == ("g0", "g0", "g1")
    assert targets.weight.tolist() == [1 + n % 2 for n in range(30)]
    assert targets.split is None


def test_labels_come_in_the_order_of_the_pairs(table):
    rows = ["id,label", *(f"{pair},{'ab'[n % 2]}" for n, pair in enumerate(PAIRS))]
    labels, _ = read(table([rows[0], *rows[:0:-1]]))
    assert labels.ids == PAIRS
    assert make_targets(labels, None).values.tolist() == [n % 2 for n in range(30)]


def test_the_labels_tell_the_task(table):
    assert task_of(["yes", "no"] * 15, table) == "classify"
    assert task_of(["1", "0", "2"] * 10, table) == "classify"
    assert task_of([1, 0] * 15, table) == "classify"
    assert task_of([True, False] * 15, table) == "classify"
    assert task_of([0.5, 2, 3] * 10, table) == "regress"
    assert task_of(list(range(100, 130)), table) == "regress"
    assert task_of(["a|b", "b", "c"] * 10, table) == "multilabel"
    assert task_of([["B", "O"]] * 30, table) == "tag"
    assert task_of(['["B", "O"]'] * 30, table) == "tag"


def test_thirty_classes_that_are_numbers_are_classes_and_ages_are_not(table):
    pairs = tuple(f"p{n}" for n in range(300))
    classes = of_values([n % 30 for n in range(300)], table, pairs)
    ages = of_values([18 + (7 * n) % 60 for n in range(300)], table, pairs)
    assert told_task(classes, None) == "classify"
    assert told_task(ages, None) == "regress"
    assert make_targets(classes, None).names == tuple(map(str, range(30)))


def test_words_are_tags_where_there_is_one_a_token(table):
    values = ["O B O", "B O"] * 15
    assert may_be_tags(of_values(values, table), None)
    assert task_of(values, table, tokens([3, 2] * 15)) == "tag"
    assert task_of(values, table, tokens([3, 4] * 15)) == "classify"
    assert not may_be_tags(of_values(["a", "b"] * 15, table), None)


def test_tags_stand_at_the_tokens_that_are_real(table):
    values = [["A", "B", None], ["B", "A"], ["A", "A", "B"], ["B", -100]] * 5
    pairs = PAIRS[:20]
    real, stored = [3, 2, 3, 2] * 5, [3, 4, 3, 2] * 5
    targets = make_targets(of_values(values, table, pairs), None, tokens(real, stored))
    assert targets.names == ("A", "B")
    assert targets.values[:4].tolist() == [
        [0, 1, IGNORED],
        [1, 0, IGNORED],
        [0, 0, 1],
        [1, IGNORED, IGNORED],
    ]


def test_tags_may_cover_the_padding_too(table):
    values = [["A", "B", "PAD", "PAD"]] * 20
    targets = make_targets(of_values(values, table, PAIRS[:20]), "tag", tokens([2] * 20, [4] * 20))
    assert targets.values.tolist() == [[0, 1]] * 20


def test_tags_go_round_padding_between_the_tokens(table):
    real = np.array([[True, False, True]] * 20)
    labels = of_values([["A", "B"]] * 20, table, PAIRS[:20])
    targets = make_targets(labels, "tag", Tokens(real, np.full(20, 3)))
    assert targets.values[0].tolist() == [0, IGNORED, 1]


def test_several_labels(table):
    targets = make_targets(of_values(["a|b", "b", "c|a"] * 10, table), None)
    assert targets.names == ("a", "b", "c")
    assert targets.values[:3].tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    listed = make_targets(of_values([["a", "b"], ["b"], []] * 10, table), "multilabel")
    assert listed.values[:3].tolist() == [[1, 1], [0, 1], [0, 0]]


def test_an_empty_cell_among_several_labels_is_none_of_them_and_is_said(table):
    rows = ["id,label", *(f"{pair},{['a|b', 'b', ''][n % 3]}" for n, pair in enumerate(PAIRS))]
    labels, told = read(table(rows))
    assert make_targets(labels, None).values[2].tolist() == [0, 0]
    assert told == [
        f"note: {labels.source}: 10 labels (first 'p2') empty: taken as none of the classes"
    ]


def test_what_has_no_partner_is_counted_and_named(table):
    rows = ["id,label", "x,1", "y,0", *(f"{pair},{n % 2}" for n, pair in enumerate(PAIRS[3:]))]
    path = table(rows)
    labels, told = read(path)
    assert labels.rows == tuple(range(3, 30))
    assert told == [
        f"warning: {path}: 2 labels (first 'x') without a pair and 3 pairs (first 'p0') without "
        "a label: left out"
    ]
    with pytest.raises(
        PairsError, match=r"--strict-pairs: .*2 labels \(first 'x'\) without a pair"
    ):
        read(path, strict=True)


def test_other_columns_are_named_as_not_used(table):
    rows = ["id,label,colour", *(f"{pair},{n % 2},red" for n, pair in enumerate(PAIRS))]
    assert read(table(rows))[1][0].endswith("not used: colour")


def test_other_columns_can_be_asked_for(table):
    rows = ["id,answer,who", *(f"{pair},{n % 2},w{n // 3}" for n, pair in enumerate(PAIRS))]
    labels, told = read(table(rows), column="answer", group="who")
    assert told == []
    assert make_targets(labels, None).group[:4] == ("w0", "w0", "w0", "w1")


def test_given_splits_have_their_usual_names(table):
    names = ["train", "Train", "val", "dev", "validation", "test"]
    rows = ["id,label,split", *(f"{p},{n % 2},{names[n % 6]}" for n, p in enumerate(PAIRS))]
    labels, _ = read(table(rows))
    assert labels.split[:6] == ("train", "train", *["validation"] * 3, "test")


def test_labels_stand_in_the_manifest(table):
    extra = [(str(n % 2), f"g{n // 2}", "", "") for n in range(30)]
    told = []
    labels = labels_of_pairs(LabelOptions(), "pairs.csv", PAIRS, extra, told.append)
    assert labels.values[:2] == ("0", "1")
    assert labels.group[2] == "g1"
    assert labels.split is None
    with pytest.raises(PairsError, match=r"pairs.csv: has no column label \(--label-column"):
        labels_of_pairs(LabelOptions(), "pairs.csv", PAIRS, [("", "", "", "")] * 30, told.append)


def test_the_classes_of_a_run_keep_their_numbers(table):
    labels = of_values(["b", "b", "b"] * 10, table)
    targets = make_targets(labels, "classify", names=("a", "b", "c"))
    assert targets.values.tolist() == [1] * 30


BAD = {
    "all equal": (["x"] * 30, None, r"column label: all 30 labels are 'x': there is nothing to"),
    "all equal numbers": ([1.5] * 30, None, r"all 30 labels are 1.5: there is nothing to learn"),
    "one example": (["a", "b"] * 14 + ["a", "c"], None,
                    r"1 class has one example \(first 'c', pair 'p29'"),
    "NaN": (["1.5", "nan", "2.5"] * 10, None, r"10 labels \(first 'p1'\) are NaN"),
    "NaN as a number": ([1.5, float("nan"), 2.5] * 10, None, r"10 labels \(first 'p1'\) are NaN"),
    "infinite": (["1.5", "inf", "2.5"] * 10, None,
                 r"10 labels \(first 'p1'\) are no number \('inf'\)"),
    "words as numbers": (["1", "two"] * 15, "regress",
                         r"15 labels \(first 'p1'\) are no number \('two'\)"),
    "ids": (list(PAIRS), None, r"has another value for each pair: this is an id and no label"),
    "row numbers": ([*range(30)], None, r"counts the pairs: this is an id and no label"),
    "equal sets": (["a|b"] * 30, None, r"all labels are the same: there is nothing to learn"),
    "lists as classes": ([["a"], ["b"]] * 15, "classify",
                         r"30 labels \(first 'p0'\) are lists: say --task tag"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "task", "message"), BAD.values(), ids=BAD)
def test_labels_that_cannot_be_learnt_are_refused(values, task, message, table):
    with pytest.raises(PairsError, match=message) as raised:
        make_targets(of_values(values, table), task)
    assert "\n" not in str(raised.value)


def test_tags_of_another_length_are_refused(table):
    values = [["A", "B"]] * 18 + [["A"], ["B", "A", "A"]]
    message = r"2 tag lists are of another length .*'p18': 1 tag for 2 tokens \(4 with padding\)\)"
    with pytest.raises(PairsError, match=message):
        make_targets(of_values(values, table, PAIRS[:20]), "tag", tokens([2] * 20, [4] * 20))


def test_all_tags_equal_are_refused(table):
    with pytest.raises(PairsError, match="all tags are 'O'"):
        make_targets(of_values([["O", "O"]] * 20, table, PAIRS[:20]), "tag", tokens([2] * 20))


def test_labels_that_a_run_has_not_learnt_are_refused(table):
    message = (
        r"15 labels of classes that the run has not learnt \(first 'z', pair 'p1'\): it knows a, b"
    )
    with pytest.raises(PairsError, match=message):
        make_targets(of_values(["a", "z"] * 15, table), "classify", names=("a", "b"))


FILES = {
    "no id": (["name,label", "p0,1"], PairsError, "has no column id: columns are name, label"),
    "no label": (["id,answer", "p0,1"], PairsError, "has no column label .*columns are answer, id"),
    "twice": (["id,label", "p0,1", "p0,0"], PairsError, "has the id 'p0' twice"),
    "nothing matches": (
        ["id,label", "p0.npy,1"], PairsError,
        "no id is that of a pair: labels are of 'p0.npy', ..., pairs are 'p0'",
    ),
    "short line": (["id,label", "p0"], PairsError, "line 2: has 1 values, expected 2"),
    "empty": ([""], PairsError, "is empty|has no column id"),
    "header only": (["id,label"], PairsError, "has no rows"),
    "odd split": (["id,label,split", "p0,1,train", "p1,0,later"], PairsError,
                  r"1 pair \(first 'p1'\) with the split 'later': expected train, validation or"),
    "no split": (["id,label,split", "p0,1,train", "p1,0,"], PairsError,
                 r"1 pair \(first 'p1'\) with the split ''"),
    "odd weight": (["id,label,weight", "p0,1,heavy", "p1,0,1"], PairsError,
                   "the weight of 'p0' is 'heavy': expected a number, 0 or more"),
    "negative weight": (["id,label,weight", "p0,1,-1", "p1,0,1"], PairsError, "'-1'"),
    "no weight": (["id,label,weight", "p0,1,0", "p1,0,0"], PairsError, "all weights are 0"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "kind", "message"), FILES.values(), ids=FILES)
def test_files_that_are_not_what_they_should_be(rows, kind, message, table):
    with pytest.raises(kind, match=message) as raised:
        read(table(rows))
    assert "\n" not in str(raised.value)


def test_the_column_of_ids_is_no_label(table):
    with pytest.raises(PairsError, match="an id tells pairs apart and is no label"):
        read(table(["id,label", "p0,1"]), column="id")


def test_a_group_that_is_asked_for_must_be_there(table):
    with pytest.raises(PairsError, match=r"has no column who \(--group\)"):
        read(table(["id,label", "p0,1"]), group="who")


def test_other_endings_are_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("id,label\n")
    with pytest.raises(UsageError, match=r"expected .csv, .jsonl, .parquet, found .txt"):
        read(str(tmp_path / "labels.txt"))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_labels_of_another_encoding_are_refused_with_what_to_do(tmp_path, encoding):
    path = tmp_path / "labels.csv"
    path.write_text("id,label\np0,grün\np1,rot\n", encoding=encoding)
    line = 2 if encoding == "cp1252" else 1
    with pytest.raises(PairsError, match=f"line {line}: is not UTF-8 text: save the file as UTF-8"):
        read(str(path), PAIRS[:2])


EQUAL = {
    "classes": ("no", None, "all 20 labels are 'no'"),
    "numbers": ("1.5", None, "all 20 labels are 1.5"),
    "several": ("a|b", None, "all labels are the same"),
}


@pytest.mark.parametrize(("value", "task", "message"), EQUAL.values(), ids=EQUAL)
def test_equal_labels_beside_missing_ones_name_both(value, task, message, table):
    rows = [f"{pair},{value}" for pair in PAIRS[:20]]
    if value != "a|b":  # an empty cell among several classes is a label: none of them
        rows += [f"{pair}," for pair in PAIRS[20:]]
    labels, _ = read(table(["id,label", *rows]))
    expected = f"{message} and 10 pairs have no label (a missing label is no class: write one): "
    with pytest.raises(PairsError, match=re.escape(expected)):
        make_targets(labels, task)
    whole, _ = read(table(["id,label", *rows[:20]]), PAIRS[:20])
    with pytest.raises(PairsError, match=re.escape(f"{message}: there is nothing to learn")):
        make_targets(whole, task)


def test_a_table_without_ids_says_what_to_call_them(table):
    with pytest.raises(PairsError, match="columns are name, label; call the column of pair ids id"):
        read(table(["name,label", "p0,1"]))
    with pytest.raises(PairsError, match=r"columns are Id, label: rename Id to id$"):
        read(table(["Id,label", "p0,1"]))
