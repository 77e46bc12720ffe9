"""What is said of thresholds, and of pairs that a run has learnt from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.training.calibration import Calibration
from fusecli.training.evaluate import refuse_other_widths
from fusecli.training.learnt import read_learnt
from fusecli.training.report import Facts, metrics_json, report_md
from fusecli.training.threshold_notes import accuracy_said, labels_said
from tests.training.results import HELPS, model, result

NAMES = ("no", "yes")
FACTS = Facts("t", NAMES, {})


def measured(*thresholds, task="classify", part="test"):
    one = result(task, text_only=HELPS)
    one.models[-1] = model("fusion")
    object.__setattr__(one.models[-1], "calibration", Calibration(1.0, thresholds))
    object.__setattr__(one, "part", part)
    return one


TWO = (
    "accuracy counts the more probable class; bal. acc., F1 and the labels of predict use the "
    "threshold found on validation (p(yes) at least 0.58 for the fusion)"
)
SAID = {
    "two classes": (measured(0.5795), TWO),
    "one half": (measured(0.5), ""),
    "no threshold": (measured(), ""),
    "match": (
        measured(0.62, task="match"),
        "accuracy counts the more probable class; the labels of predict use the threshold found "
        "on validation (probability at least 0.62 for the fusion)",
    ),
    "several": (
        measured(0.31, 0.62, task="multilabel"),
        "accuracy, F1 and the labels of predict use the thresholds found on validation (0.31 to "
        "0.62 for the fusion)",
    ),
    "folds": (
        measured(0.58, part="out-of-fold"),
        "accuracy counts the more probable class; bal. acc. and F1 use the threshold found on "
        "validation (p(yes) at least 0.58 for the fusion), the mean over the folds; the labels of "
        "predict use that of the models trained on all pairs",
    ),
}


@pytest.mark.parametrize(("found", "said"), SAID.values(), ids=SAID)
def test_which_numbers_of_the_table_use_a_threshold(found, said):
    metrics = metrics_json(found, FACTS)
    assert accuracy_said(metrics) == said
    assert accuracy_said(json.loads(json.dumps(metrics))) == said
    report = report_md(found, FACTS)
    assert report.count("use the threshold") + report.count("labels of predict") == (
        said.count("use the threshold") + said.count("labels of predict")
    )
    assert said[1:] in report


def test_metrics_that_do_not_say_it_are_left():
    metrics = metrics_json(measured(0.58), FACTS)
    for key in ("models", "table", "names", "task", "part"):
        assert accuracy_said({name: metrics[name] for name in metrics if name != key}) == ""
    for damaged in ({"models": [1]}, {"models": {"a": 1}}, {"table": 3}, {"names": []}):
        assert accuracy_said(metrics | damaged) == ""


LABELS = {
    "two classes": ("classify", NAMES, (0.57948,),
                    "labels: yes where p(yes) is at least 0.5795, the threshold found in "
                    "validation"),
    "tags": ("tag", NAMES, (0.25,),
             "labels: yes where p(yes) is at least 0.25, the threshold found in validation"),
    "match": ("match", (), (0.61,),
              "labels: true where probability is at least 0.61, the threshold found in validation"),
    "several": ("multilabel", ("a", "b"), (0.3, 0.5),
                "labels: a where p(a) is at least 0.3, b where p(b) is at least 0.5: the "
                "thresholds found in validation"),
    "one half": ("classify", NAMES, (0.5,), ""),
    "three classes": ("classify", ("a", "b", "c"), (), ""),
    "numbers": ("regress", (), (), ""),
}  # fmt: skip


@pytest.mark.parametrize(("task", "names", "thresholds", "said"), LABELS.values(), ids=LABELS)
def test_from_where_on_predict_writes_a_label(task, names, thresholds, said):
    assert labels_said(task, names, thresholds) == said


def test_of_many_labels_the_first_are_listed():
    said = labels_said("multilabel", tuple("abcdefgh"), (0.4,) * 8)
    assert said.endswith("f where p(f) is at least 0.4, ...: the thresholds found in validation")


def examples(image=6, text=5, ids=("a", "b", "c"), keys=("x", "y", "z")):
    widths = {"image": image, "text": text}
    return SimpleNamespace(width=widths.get, ids=ids, image_key=keys, n=len(ids))


def test_predictions_of_pairs_that_were_learnt_from_are_counted(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("id,group,split,image\na,0,train,x\nb,1,validation,y\nc,2,test,z\n")
    learnt = read_learnt(str(path))
    assert learnt.known(examples(), np.array([2, 1, 0])).tolist() == [False, True, True]
    assert learnt.of_predictions(examples()) == (
        "2 of 3 pairs stood in training or validation of this run: their predictions are no "
        "measure of it"
    )
    assert learnt.of_predictions(examples(keys=("x", "other", "z"))) == (
        "1 of 3 pairs stood in training or validation of this run: its prediction is no measure "
        "of it"
    )
    assert learnt.of_predictions(examples(ids=("d", "e", "f"))) == ""


def test_a_run_of_folds_has_learnt_from_all_its_pairs(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("id,group,fold,image\na,0,1,x\nb,1,2,y\n")
    learnt = read_learnt(str(path))
    assert learnt.pairs == {("a", "x"), ("b", "y")}
    path.write_text("id,group,fold,image\na,0,1\n")
    with pytest.raises(FeatureFileError, match="is damaged, a row has not the columns"):
        read_learnt(str(path))


def a_run(image, text):
    spec = SimpleNamespace(image_dim=image, text_dim=text)
    return [SimpleNamespace(members=[SimpleNamespace(spec=spec)])]


def test_exchanged_widths_are_told_from_those_of_another_encoder():
    refuse_other_widths("run", a_run(6, 5), examples(6, 5))
    with pytest.raises(ShapeError) as raised:
        refuse_other_widths("run", a_run(5, 6), examples(6, 5))
    assert str(raised.value) == (
        "the image features are 6 wide and the text features 5, and run has learnt from images of "
        "5 and texts of 6: the two widths are exchanged: give the two folders in the order IMAGES "
        "TEXTS, or exchange the columns image and text of the manifest"
    )
    with pytest.raises(ShapeError, match="6 wide, and run has learnt from 7: take features of the"):
        refuse_other_widths("run", a_run(7, 5), examples(6, 5))
    with pytest.raises(ShapeError, match="take features of the same encoder"):
        refuse_other_widths("run", a_run(5, 7), examples(6, 5))
