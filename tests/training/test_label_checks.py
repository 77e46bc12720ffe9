"""Labels that cannot be meant as they are written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusecli.errors import FuseError, PairsError, UsageError
from fusecli.pairs.pair import PairOptions
from fusecli.training.encode import make_targets, told_task
from fusecli.training.label_checks import doubts
from fusecli.training.label_rows import read_rows
from fusecli.training.labels import labels_of_file
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.split import make_split
from fusecli.training.targets import Targets
from fusecli.training.train import run_training
from tests.training import generators
from tests.training.generators import written

REFUSED = {
    "objects": ([{"a": 1}, {"b": 1}], r"2 labels \(first 'pair-a'\) are an object"),
    "lists of lists": (["[[0], 1]", "[0, 1]"], "is a list of lists"),
    "a list in Python's spelling": (["['A', 'B']", "['B']"], "with double quotes"),
    "NaN": (["1.5", "nan", "2.5"], r"1 label \(first 'pair-b'\) is NaN"),
    "a decimal comma": (["0,5", "1,5", "2"], "'pair-a': '0,5'.* with a decimal comma"),
    "a word among numbers": (["0.5", "1.5", "None"], "2 labels are numbers and 1 is not"),
    "too large": (["0.5", "1e300", "2.5"], "expected at most 3.4e"),
    "all equal": (["1.5", "1.5"], "there is nothing to learn"),
    "equal as float32": ([1.0000000001, 1.0, 1.00000000001], "there is nothing to learn"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_labels_that_cannot_be_learnt_are_refused(values, message):
    labels = written(*values)
    with pytest.raises(PairsError, match=message):
        make_targets(labels, "regress" if message == "there is nothing to learn" else None)


def test_numbers_at_the_end_of_the_ids_are_no_labels():
    labels = replace(written("3.0", "12.0", "7.0"), ids=("p3", "p12.a", "p007"))
    with pytest.raises(PairsError, match="this is an id and no label"):
        make_targets(labels, "regress")
    make_targets(replace(labels, ids=("p3", "p12", "p8")), "regress")


def test_a_whole_number_has_one_spelling():
    targets = make_targets(written("0.0", "1", 1.0, 0, "1.00", "0"), "classify")
    assert targets.names == ("0", "1")
    assert targets.values.tolist() == [0, 1, 1, 0, 1, 0]
    # What a run has learnt from 0 and 1 is evaluated on 0.0 and 1.0.
    again = make_targets(written("1.0", "0.0"), "classify", names=targets.names)
    assert again.values.tolist() == [1, 0]
    assert make_targets(written("1.5", "1.0", "1.5", "1"), "classify").names == ("1", "1.5")


def test_classes_that_may_be_slips_are_named():
    labels = written("yes", "no")
    assert doubts(labels, ("no", "yes")) == []
    (line,) = doubts(labels, ("NA", "no", "yes"))
    assert line.startswith("warning: l.csv: taken as a class: 'NA': leave the cell empty")
    (line,) = doubts(labels, ("No", "no", "yes"))
    assert "differ in case only: 'No', 'no': each is a class of its own" in line


def test_a_few_words_among_classes_of_whole_numbers_are_classes():
    assert told_task(written("1", "2", "1", "other"), None) == "classify"
    assert make_targets(written("1", "2", "1", "2", "x", "x"), None).names == ("1", "2", "x")


TABLES = {
    "semicolons": ("id;label\na;1\n", "is separated by ';': expected commas"),
    "tabs": ("id\tlabel\na\t1\n", r"is separated by '\\t': expected commas"),
    "case": ("ID,Label\na,1\n", "rename ID to id"),
}


@pytest.mark.parametrize(("content", "message"), TABLES.values(), ids=TABLES)
def test_what_to_change_in_a_table_is_said(content, message, tmp_path):
    (tmp_path / "l.csv").write_text(content)
    with pytest.raises(PairsError, match=message):
        list(read_rows(str(tmp_path / "l.csv")))


def test_ids_that_are_names_of_files(tmp_path):
    (tmp_path / "l.csv").write_text("id,label\na.npy,1\nimages/b.npy,2\n")
    options = LabelOptions(str(tmp_path / "l.csv"))
    with pytest.raises(PairsError, match="an id is the file's name without its ending"):
        labels_of_file(options, ["a", "b"], print)


def test_a_given_split_that_trains_on_one_class_is_refused():
    targets = generators.classes([0, 1] * 15, ("a", "b"))
    targets = replace(targets, split=("train", "test") * 15)
    with pytest.raises(PairsError, match=r"training pairs of one class only \('a'\)"):
        make_split(targets, np.arange(30), [str(i) for i in range(30)], 0)


def test_a_run_is_never_written_among_the_features(tmp_path):
    for side in ("img", "txt"):
        (tmp_path / side).mkdir()
    pairs = PairOptions(str(tmp_path / "img"), str(tmp_path / "txt"))
    options = TrainOptions(pairs, LabelOptions(), str(tmp_path / "img" / "run"))
    with pytest.raises(UsageError, match="is inside the input folder"):
        run_training(options, print, None)  # type: ignore[arg-type]
    with pytest.raises(FuseError, match="--device cuda:99"):
        run_training(replace(options, output=str(tmp_path / "run"), device="cuda:99"), print, None)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_part_of_one_class_has_no_auc_and_says_so():
    from fusecli.training.calibration import Calibration
    from fusecli.training.flat import flatten
    from fusecli.training.results import Measured, compare
    from fusecli.training.verdict import verdict

    targets = Targets("classify", ("a", "b"), np.ones(40, np.int64))
    flat = flatten(targets, np.zeros((40, 2)), np.arange(40))
    models = [Measured(name, flat, Calibration()) for name in ("text only", "additive", "fusion")]
    assert verdict(compare("test", models, 40, 0)) == [
        "warning: AUC cannot be computed on the test part: it has one class only"
    ]
