"""Metrics, temperature and thresholds against scikit-learn and against values known by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from fusecli.errors import FeatureFileError
from fusecli.training.calibration import (
    Calibration,
    best_balanced_accuracy,
    best_f1,
    calibrate,
    fit_temperature,
    log_loss,
)
from fusecli.training.flat import Flat, flatten, headline_of, probabilities
from fusecli.training.metrics import calibration_error, measure
from fusecli.training.score_part import refuse_nonfinite
from fusecli.training.targets import IGNORED, Targets

pytestmark = pytest.mark.slow

GENERATOR = np.random.default_rng(2)


def flat(task, truth, logits, names=()):
    m = len(truth)
    return Flat(task, names, truth, np.asarray(logits, float), np.arange(m), np.ones(m))


def test_two_classes_by_hand():
    truth = np.array([0, 0, 1, 1])
    logits = np.array([[2, 0], [0, 1], [1, 0], [0, 3]])
    found = measure(flat("classify", truth, logits, ("no", "yes")), Calibration())
    assert found["auc"] == 0.75
    assert found["accuracy"] == 0.5
    assert found["confusion"] == {
        "rows": "true class",
        "columns": "predicted class",
        "names": ["no", "yes"],
        "counts": [[1, 1], [1, 1]],
    }
    lower = measure(flat("classify", truth, logits, ("no", "yes")), Calibration(thresholds=(0.2,)))
    assert lower["accuracy"] == 0.5  # of the more probable class
    assert lower["accuracy_at_threshold"] == 0.75
    assert lower["confusion"]["counts"] == [[1, 1], [0, 2]]
    assert lower["balanced_accuracy"] == 0.75
    assert lower["f1"] == pytest.approx(0.8)
    assert lower["mcc"] == pytest.approx(1 / 3**0.5)


def test_many_classes_are_those_of_sklearn():
    truth = GENERATOR.integers(0, 4, 200)
    logits = GENERATOR.normal(size=(200, 5)) + 2 * np.eye(5)[truth]
    found = measure(flat("classify", truth, logits, tuple("abcde")), Calibration(temperature=2.0))
    answer, chances = logits.argmax(axis=1), probabilities("classify", logits, 2.0)
    assert found["accuracy"] == sk.accuracy_score(truth, answer)
    recalls = [(answer[truth == c] == c).mean() for c in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["mcc"] == sk.matthews_corrcoef(truth, answer)
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, chances, labels=range(5)))
    assert found["per_class"][1]["auc"] == pytest.approx(
        sk.roc_auc_score(truth == 1, chances[:, 1])
    )
    # The class that no row has is named, and has no AUC.
    assert found["per_class"][4]["rows"] == 0
    assert found["per_class"][4]["auc"] is None
    json.dumps(found, allow_nan=False)


def test_labels_have_thresholds_of_their_own():
    truth = GENERATOR.integers(0, 2, (300, 2)).astype(float)
    logits = GENERATOR.normal(size=(300, 2)) + 2 * truth - [0, 6]
    rows = flat("multilabel", truth, logits, ("a", "b"))
    even = measure(rows, Calibration())
    tuned = measure(rows, calibrate(rows))
    assert even["per_class"][1]["f1"] < 0.2  # its logits are all far below 0
    assert tuned["per_class"][1]["f1"] > 0.7
    assert tuned["auc"] == pytest.approx(
        np.mean([sk.roc_auc_score(truth[:, c], logits[:, c]) for c in range(2)])
    )
    assert tuned["all_labels_right"] < tuned["accuracy"]


def test_numbers():
    truth = GENERATOR.normal(size=100)
    said = truth + GENERATOR.normal(size=100)
    found = measure(flat("regress", truth, said[:, None]), Calibration())
    assert found["r2"] == sk.r2_score(truth, said)
    assert found["mae"] == sk.mean_absolute_error(truth, said)
    assert 0.5 < found["spearman"] < 0.9
    constant = measure(flat("regress", truth, np.zeros((100, 1))), Calibration())
    assert constant["spearman"] is None


def test_one_class_only_gives_no_auc_and_no_error():
    found = measure(
        flat("classify", np.ones(5, np.int64), np.zeros((5, 2)), ("no", "yes")), Calibration()
    )
    assert found["auc"] is None
    json.dumps(found, allow_nan=False)


def test_the_temperature_of_logits_that_are_three_times_too_large_is_three():
    exact = GENERATOR.normal(size=(20_000, 3))
    chances = probabilities("classify", exact)
    truth = (GENERATOR.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    rows = flat("classify", truth, 3 * exact, tuple("abc"))
    temperature = fit_temperature(rows)
    assert temperature == pytest.approx(3, rel=0.05)
    assert log_loss(rows, temperature) < log_loss(rows, 1.0)
    before, after = (
        calibration_error(probabilities("classify", 3 * exact, t), truth, rows.weight)
        for t in (1.0, temperature)
    )
    assert after < 0.02 < before


def test_the_temperature_stays_where_nothing_can_be_learnt():
    rows = flat("classify", np.array([0, 1] * 10), np.zeros((20, 2)), ("a", "b"))
    assert fit_temperature(rows) == 1.0


def test_thresholds_are_the_best_of_all_by_trying_all():
    chance = np.round(GENERATOR.random(50), 2)
    positive = GENERATOR.random(50) < chance**2
    weight = np.ones(50)

    def balanced(cut):
        return sk.balanced_accuracy_score(positive, chance >= cut)

    def f1(cut):
        return sk.f1_score(positive, chance >= cut)

    cuts = np.linspace(0, 0.999, 1000)
    assert balanced(best_balanced_accuracy(chance, positive, weight)) == pytest.approx(
        max(map(balanced, cuts))
    )
    assert f1(best_f1(chance, positive, weight)) == pytest.approx(max(map(f1, cuts)))


def test_the_calibration_error_by_hand():
    # Two rows of confidence 0.9, one right; two of 0.6, both right.
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    error = calibration_error(chances, np.array([0, 1, 0, 0]), np.ones(4))
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


def test_tags_are_flattened_to_tokens_that_have_one():
    values = np.array([[0, 1, IGNORED], [IGNORED, 1, 1]])
    targets = Targets("tag", ("x", "y"), values, np.array([1, 2], np.float32))
    logits = np.arange(12).reshape(2, 3, 2)
    rows = flatten(targets, logits, np.array([7, 9]))
    assert rows.truth.tolist() == [0, 1, 1, 1]
    assert rows.logits.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert rows.group.tolist() == [0, 0, 1, 1]
    assert rows.weight.tolist() == [1, 1, 2, 2]


def test_match_has_a_right_and_a_wrong_image_a_text():
    targets = Targets("match", (), np.ones(3, np.int64))
    rows = flatten(targets, np.array([[3.0], [2], [1], [0], [1.5], [-1]]), np.array([0, 0, 1]))
    assert rows.truth.tolist() == [1, 1, 1, 0, 0, 0]
    assert rows.group.tolist() == [0, 0, 1, 0, 0, 1]
    found = measure(rows, Calibration(thresholds=(0.5,)))
    assert found["auc"] == pytest.approx(8 / 9)
    assert found["confusion"]["names"] == ["other image", "own image"]


def test_the_headline_follows_the_task():
    assert headline_of("classify", 2) == "AUC"
    assert headline_of("classify", 3) == "accuracy"
    assert headline_of("tag", 3) == "accuracy"
    assert headline_of("multilabel", 30) == "AUC"
    assert headline_of("regress", 1) == "R2"
    assert headline_of("match", 1) == "AUC"


def test_without_sklearn_one_line_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['sklearn'] = None\n"
        "from fusecli.errors import MissingExtraError\n"
        "from fusecli.training.metrics import require_sklearn\n"
        "try:\n    require_sklearn()\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install '.[train]'" in done.stdout
    assert done.stdout.count("\n") == 1


def test_pairs_of_match_without_a_number_are_counted_once():
    """A pair has two rows: with its own image and with a wrong one."""
    logits = np.zeros((6, 1), np.float32)
    logits[[1, 2, 4], 0] = np.nan
    with pytest.raises(
        FeatureFileError, match=r"'fusion' gives NaN or infinity for 2 pairs, the first is 'b'"
    ):
        refuse_nonfinite("run", "fusion", ["a", "b", "c"], logits)
