"""Intervals: a draw's metric is scikit-learn's on rows that are repeated as often as drawn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from fusecli.training import bootstrap
from fusecli.training.bootstrap import draw_headlines, headline, interval
from fusecli.training.flat import Flat

pytestmark = pytest.mark.slow

GENERATOR = np.random.default_rng(5)
M = 60
GROUP = np.sort(np.r_[np.arange(12), GENERATOR.integers(0, 12, M - 12)])


def rows(task, truth, logits, names=()):
    return Flat(task, names, truth, logits.astype(np.float64), GROUP, np.ones(M))


def binary(ties):
    scores = GENERATOR.normal(size=(M, 2))
    if ties:
        scores = np.round(scores)
    return rows("classify", GENERATOR.integers(0, 2, M), scores, ("no", "yes"))


def many_classes():
    return rows(
        "classify", GENERATOR.integers(0, 4, M), GENERATOR.normal(size=(M, 4)), tuple("abcd")
    )


def several_labels():
    truth = GENERATOR.integers(0, 2, (M, 3)).astype(np.float64)
    return rows("multilabel", truth, GENERATOR.normal(size=(M, 3)), tuple("abc"))


def numbers():
    truth = 1000 + GENERATOR.normal(size=M)
    return rows("regress", truth, (truth + GENERATOR.normal(size=M))[:, None])


def by_sklearn(flat, chosen):
    truth, logits = flat.truth[chosen], flat.logits[chosen]
    if flat.task == "regress":
        return sk.r2_score(truth, logits[:, 0])
    if flat.task == "multilabel":
        return np.mean([sk.roc_auc_score(truth[:, c], logits[:, c]) for c in range(3)])
    if len(flat.names) == 2:
        return sk.roc_auc_score(truth, logits[:, 1] - logits[:, 0])
    return sk.accuracy_score(truth, logits.argmax(axis=1))


CASES = {
    "two classes": binary(ties=False),
    "two classes with equal scores": binary(ties=True),
    "four classes": many_classes(),
    "labels": several_labels(),
    "numbers": numbers(),
}


def replicated(counts):
    return np.repeat(np.arange(M), counts[GROUP].astype(int))


@pytest.mark.parametrize("flat", CASES.values(), ids=CASES)
@pytest.mark.parametrize("at_once", [1, 7, 1 << 21])
def test_each_draw_is_sklearns_metric_on_replicated_rows(flat, at_once, monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", at_once * M)
    values = draw_headlines([flat], seed=3, draws=20)[0]
    assert values.shape == (20,)
    counts = np.concatenate(list(bootstrap._draws(12, M, 3, 20)))
    np.testing.assert_allclose(
        values, [by_sklearn(flat, replicated(one)) for one in counts], rtol=0, atol=1e-12
    )
    assert headline(flat) == pytest.approx(by_sklearn(flat, np.arange(M)), abs=1e-12)


def test_every_draw_takes_as_many_groups_as_there_are():
    counts = np.concatenate(list(bootstrap._draws(12, M, 0, 50)))
    assert counts.shape == (50, 12)
    assert (counts.sum(axis=1) == 12).all()
    assert 0.55 < (counts > 0).mean() < 0.75  # 1 - 1/e of the groups are in a draw


def test_weights_of_rows_count_as_repeated_rows_do():
    flat = CASES["two classes with equal scores"]
    weight = GENERATOR.integers(1, 4, M)
    heavy = Flat(flat.task, flat.names, flat.truth, flat.logits, GROUP, weight.astype(float))
    assert headline(heavy) == pytest.approx(by_sklearn(flat, np.repeat(np.arange(M), weight)))


def test_models_share_their_draws():
    flat = CASES["two classes"]
    values = draw_headlines([flat, flat.with_logits(2 * flat.logits)], seed=1, draws=200)
    np.testing.assert_array_equal(values[0], values[1])
    # A paired difference is much surer than each of the two.
    other = flat.with_logits(flat.logits + 0.1 * GENERATOR.normal(size=flat.logits.shape))
    values = draw_headlines([flat, other], seed=1, draws=500)
    assert np.std(values[0] - values[1]) < np.std(values[0]) / 2


def test_draws_that_have_one_class_only_are_left_out():
    truth = np.zeros(M, np.int64)
    truth[GROUP == 4] = 1
    flat = rows("classify", truth, GENERATOR.normal(size=(M, 2)), ("no", "yes"))
    values = draw_headlines([flat], seed=0, draws=300)[0]
    assert 0.2 < np.isnan(values).mean() < 0.5
    found = interval(headline(flat), values)
    assert np.isfinite([found.low, found.high]).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Rows of a group are copies of each other: as for rows, it would be far too narrow."""
    generator = np.random.default_rng(0)
    covered, trials = 0, 100
    for trial in range(trials):
        right = generator.random(60) < 0.7
        group = np.repeat(np.arange(60), 5)
        truth = np.zeros(300, np.int64)
        logits = np.zeros((300, 3))
        logits[np.arange(300), np.where(right[group], 0, 1)] = 1
        flat = Flat("classify", tuple("abc"), truth, logits, group, np.ones(300))
        found = interval(headline(flat), draw_headlines([flat], seed=trial, draws=400)[0])
        covered += found.low <= 0.7 <= found.high
    assert 88 <= covered <= 99
