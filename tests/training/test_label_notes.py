"""What is assumed of labels is said, in one line a kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusecli.errors import PairsError
from fusecli.training.encode import Tokens, make_targets, told_task
from fusecli.training.label_checks import doubts
from fusecli.training.label_notes import column_notes, spelling_notes
from fusecli.training.labels import Labels, labels_of_file
from fusecli.training.options import LabelOptions
from fusecli.training.split import classes_not_learnt, make_split
from tests.training import generators
from tests.training.generators import written


def table(tmp_path, *lines) -> tuple[Labels, list[str]]:
    (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
    told: list[str] = []
    ids = ["p1", "p2", "p3", "p4"]
    return labels_of_file(LabelOptions(str(tmp_path / "l.csv")), ids, told.append), told


def notes(labels: Labels, task=None) -> list[str]:
    return [
        line.removeprefix(f"note: {labels.source}: ")
        for line in spelling_notes(labels, make_targets(labels, task))
    ]


def test_used_columns_are_said_with_what_is_in_them(tmp_path):
    labels, told = table(
        tmp_path, "id,label,group,split,weight",
        "p1,a,g ,train,0", "p2,b,g,Val,1", "p3,a,,TEST,2.5", "p4,b,,train,1",
    )  # fmt: skip
    assert told == []
    assert labels.group[0] == labels.group[1] == "g"  # blanks are no part of a name
    assert column_notes(labels) == [
        f"note: {labels.source}: column group: 3 groups; 2 pairs (first 'p3') without a group: "
        "each is a group of its own",
        f"note: {labels.source}: column split: 2 train, 1 validation, 1 test",
        f"note: {labels.source}: column weight: from 0 to 2.5; 1 pair (first 'p1') with weight 0: "
        "not counted",
    ]
    assert len(column_notes(labels, split=False)) == 2
    assert column_notes(written("a", "b")) == []


def test_spellings_that_are_one_class_are_said():
    assert notes(written("yes", "no ", "yes", "no")) == ["'no ', 'no' are taken as one class, no"]
    assert notes(written(1, "1.0", 0, 0)) == ["1, '1.0' are taken as one class, 1"]
    assert notes(written("yes", "no", "yes", "no")) == []
    # Values to be predicted are numbers, however they are spelt.
    assert notes(written("0.5", "1.50", "1.5", "2.25")) == []


def test_classes_that_stand_twice_or_are_empty_are_said():
    assert notes(written("a|b", "b|b", "a|", "a | b", "")) == [
        "'a', 'a ' are taken as one class, a; 1 more likewise",
        "1 label (first 'pair-b') with a class twice: counted once",
        "1 label (first 'pair-c') with an empty class: left out",
    ]


def test_tokens_without_a_tag_are_counted():
    labels = written(["A", None], ["B", "A", ""], ["A", "B", "A", "B"])
    real = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], bool)
    tokens = Tokens(real, np.array([2, 3, 4]))
    targets = make_targets(labels, "tag", tokens)
    assert spelling_notes(labels, targets, tokens) == [
        "note: l.csv: 2 tokens of 2 pairs (first 'pair-a') without a tag (null, -100 or empty): "
        "not counted",
        "note: l.csv: 1 pair (first 'pair-c') with tags at padding tokens: these are not used",
    ]
    assert targets.values.tolist() == [[0, -1, -1, -1], [1, 0, -1, -1], [0, 1, -1, -1]]


def test_a_text_with_a_word_too_many_among_tags_is_refused():
    lengths = np.array([2 + n % 3 for n in range(12)])
    tokens = Tokens(np.arange(4) < lengths[:, None], lengths)
    words = [" ".join("AB"[k % 2] for k in range(length)) for length in lengths]
    words[5] += " A"
    labels = written(*words)
    assert told_task(labels, tokens) == "tag"
    with pytest.raises(PairsError, match=r"5 tags for 4 tokens.*--task classify takes each text"):
        make_targets(labels, None, tokens)
    # Sentences that have the right length here and there are classes.
    assert told_task(written(*["one two", "one two three four"] * 6), tokens) == "classify"


def test_weights_that_leave_one_class_are_refused():
    labels = replace(written("a", "b", "a", "b"), weight=(1.0, 0.0, 2.0, 0.0))
    with pytest.raises(PairsError, match="all labels with a weight above 0 are 'a'"):
        make_targets(labels, None)
    assert make_targets(labels, None, names=("a", "b")).n == 4  # evaluated, not learnt from


@pytest.mark.parametrize("weight", ["1e39", "1e-30"])
def test_weights_that_float32_would_lose_are_refused(weight, tmp_path):
    with pytest.raises(PairsError, match="multiply all weights by a constant"):
        table(tmp_path, "id,label,weight", f"p1,a,{weight}", "p2,b,1", "p3,a,1", "p4,b,1")


IDS = {
    "endings": (["p1.npy", "x/p2.npy"], "an id is the file's name without its ending"),
    "blanks": (["p1 ", "p2 "], "some ids differ in blanks at their ends only"),
    "case": (["P1", "P2"], "some ids differ in capital letters only"),
    "zeros": (["0p1", "00p2"], "some ids differ in zeros in front only"),
}


@pytest.mark.parametrize(("ids", "remedy"), IDS.values(), ids=IDS)
def test_what_differs_in_ids_is_said(ids, remedy, tmp_path):
    with pytest.raises(PairsError, match=f"no id is that of a pair.*{remedy}"):
        table(tmp_path, "id,label", *(f"{id},a" for id in ids))
    _, told = table(tmp_path, "id,label", *(f"{id},a" for id in ids), "p3,b", "p4,b")
    assert told[0].endswith(f"2 pairs (first 'p1') without a label: left out; {remedy}")
    _, told = table(tmp_path, "id,label", "other,a", "p2,a", "p3,b", "p4,b")
    assert told[0].endswith("without a label: left out")


def test_numbers_with_thousands_or_a_unit_are_refused():
    with pytest.raises(PairsError, match=r"thousands or decimals. write 1234.5, without a comma"):
        make_targets(written("1,000", "2,500", "12,000"), None)
    many = [f"{n}%" for n in range(30)]
    labels = Labels("l.csv", "label", tuple(range(30)), tuple(map(str, range(30))), tuple(many),
                    None, None, None)  # fmt: skip
    with pytest.raises(PairsError, match=r"'0%'.* with a unit: write the number alone; if they "):
        make_targets(labels, None)
    assert make_targets(written("5%", "10%", "5%", "10%"), None).task == "classify"


LIKE_NUMBERS = {
    "a unit": [f"{n}%" for n in range(30)],
    "thousands": ["1,000", "2,500", "12,000"],
    "a decimal comma": ["0,5", "1,5", "2"],
    "a word among numbers": ["0.5", "1.5", "other"],
}


@pytest.mark.parametrize("kinds", LIKE_NUMBERS.values(), ids=LIKE_NUMBERS)
def test_labels_that_look_like_numbers_are_classes_where_classes_are_asked_for(kinds):
    n = 2 * len(kinds)
    labels = Labels("l.csv", "label", tuple(range(n)), tuple(f"p{i}x" for i in range(n)),
                    tuple(kinds * 2), None, None, None)  # fmt: skip
    with pytest.raises(PairsError, match=r"; if they are classes, say --task classify$"):
        make_targets(labels, None)
    with pytest.raises(PairsError) as refused:
        make_targets(labels, "regress")
    assert "--task classify" not in str(refused.value)
    targets = make_targets(labels, "classify")  # the advice, followed
    assert sorted(targets.names) == sorted(kinds)
    assert [targets.names[value] for value in targets.values] == list(labels.values)


def test_what_is_no_tag_is_none_however_it_is_written():
    tokens = Tokens(np.ones((5, 3), bool), np.full(5, 3))
    labels = written(
        "A -100 B", ["B", -100, "A"], ["B", "-100", "A"], ["A", " ", "B"], '["A", null, "B"]'
    )
    targets = make_targets(labels, "tag", tokens)
    assert targets.names == ("A", "B")
    assert targets.values.tolist() == [[0, -1, 1], [1, -1, 0], [1, -1, 0], [0, -1, 1], [0, -1, 1]]
    assert spelling_notes(labels, targets, tokens) == [
        "note: l.csv: 5 tokens of 5 pairs (first 'pair-a') without a tag (null, -100 or empty): "
        "not counted",
    ]
    # As a class of the whole pair, -100 is one like any other.
    assert make_targets(written("-100", "1", "-100", "1"), "classify").names == ("-100", "1")


def test_null_in_a_list_of_classes_is_left_out_as_is_said():
    labels = written('["a", null]', '["b", " "]', '["a", "b"]')
    targets = make_targets(labels, "multilabel")
    assert targets.names == ("a", "b")
    assert targets.values.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert notes(labels, "multilabel") == [
        "2 labels (first 'pair-a') with an empty class: left out"
    ]


NOT_ALIKE = {
    "tags of the Penn Treebank": ("``", "''", "'", '"', ":", ",", "."),
    "a blank between": ("New York", "NewYork"),
    "a line between digits": ("1_0", "10"),
    "a raised digit": ("m\xb2", "m2"),
    "other letters": ("Ma\xdfe", "Masse"),
}


@pytest.mark.parametrize("names", NOT_ALIKE.values(), ids=NOT_ALIKE)
def test_classes_that_do_not_look_alike_are_not_named(names):
    assert doubts(written("a", "b"), names) == []


def test_classes_that_look_alike_are_named_beside_those_that_differ_in_case():
    labels = written("a", "b")
    case, alike = doubts(labels, ("A", "B", "\u201cB\u201d", "a", "b"))
    assert "differ in case only: 'A', 'a' and 1 more: each" in case
    assert r"look alike: 'B', '\u201cB\u201d': each" in alike
    for one, other in (("a  b", "a b"), ("a\u200bb", "ab"), ("a_b", "a b"), ("\uff21", "A")):
        (line,) = doubts(labels, (one, other))
        assert "classes that look alike" in line


def test_classes_that_look_alike_are_named():
    labels = written("a", "b")
    (line,) = doubts(labels, ("'yes'", "no", "yes"))
    assert "classes that look alike: \"'yes'\", 'yes': each is a class of its own" in line
    (line,) = doubts(labels, ("e\u0301", "\xe9"))
    assert r"'e\u0301', '\xe9'" in line  # printed as they are, both look the same
    assert doubts(labels, ("A+", "A-", "C", "C++", "-1", "1")) == []


def test_classes_of_the_test_part_only_are_known():
    targets = generators.classes([0, 1] * 15, ("a", "b"))
    split = make_split(targets, np.arange(30), [str(i) for i in range(30)], 0)
    assert classes_not_learnt(split, targets) == []
    given = replace(targets, values=np.array([2, 2, *([0, 1] * 14)]), names=("a", "b", "c"),
                    split=("test", "test", *(["train"] * 28)))  # fmt: skip
    split = make_split(given, np.arange(30), [str(i) for i in range(30)], 0)
    assert classes_not_learnt(split, given) == ["c"]


def test_classes_of_pairs_that_do_not_count_are_not_learnt():
    values, weight = np.array([2, 2, *([0, 1] * 14)]), np.ones(30, np.float32)
    weight[:2] = 0
    targets = replace(generators.classes([0, 1] * 15), values=values, names=("a", "b", "c"),
                      weight=weight)  # fmt: skip
    ids = [str(i) for i in range(30)]
    given = replace(targets, split=("train",) * 20 + ("test",) * 10)
    assert classes_not_learnt(make_split(given, np.arange(30), ids, 0), given) == ["c"]
    counted = replace(given, weight=np.ones(30, np.float32))
    assert classes_not_learnt(make_split(counted, np.arange(30), ids, 0), counted) == []
    # One pair of the class counts: where no split is given, it is learnt from.
    weight[0] = 1
    for seed in range(8):
        split = make_split(targets, np.arange(30), ids, seed)
        assert 0 in split.train
    nothing = replace(given, weight=np.repeat([0, 1], [20, 10]).astype(np.float32))
    with pytest.raises(PairsError, match="all pairs of the training part have weight 0"):
        make_split(nothing, np.arange(30), ids, 0)
