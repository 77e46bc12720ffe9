"""EMAP against a computation that loops over everything, and wrong partners."""

import numpy as np
import pytest

from fusecli.training.bootstrap import headline
from fusecli.training.emap import emap
from fusecli.training.flat import flatten
from fusecli.training.shuffle import other_rows, shuffled_metric, with_negatives
from fusecli.training.targets import Targets


class Table:
    """n pairs with numbers as features; equal numbers are equal content."""

    def __init__(self, text, image, lengths=None):
        self.text, self.image = np.asarray(text), np.asarray(image)
        self.n = len(self.text)
        self.ids = tuple(map(str, range(self.n)))
        self.text_key = tuple(map(str, self.text))
        self.image_key = tuple(map(str, self.image))
        lengths = np.ones(self.n, int) if lengths is None else np.asarray(lengths)
        self.text_mask = np.arange(lengths.max()) < lengths[:, None]


class Formula:
    """A model that is a formula of the two numbers; [C] a pair."""

    name = "formula"

    def __init__(self, table, formula):
        self.table, self.formula, self.calls = table, formula, 0

    def logits(self, rows, image_rows=None):
        image_rows = rows if image_rows is None else image_rows
        self.calls += len(rows)
        pairs = zip(self.table.text[rows], self.table.image[image_rows], strict=True)
        return np.array([self.formula(t, v) for t, v in pairs], np.float32)

    def cross_logits(self, text_rows, image_rows):
        self.calls += len(text_rows) * len(image_rows)
        texts, images = self.table.text[text_rows], self.table.image[image_rows]
        return np.array([[self.formula(t, v) for v in images] for t in texts], np.float32)


def interacting(t, v):
    return [t * v, np.sin(3 * t + v), t - v]


def additive(t, v):
    return [np.sin(t) + 2 * v, t**2 - np.cos(v)]


def brute_force(table, formula, rows):
    """The definition, over all pairs of texts and images of the rows, repeated ones repeatedly."""
    out = []
    for i in rows:
        own = np.mean([formula(table.text[i], table.image[v]) for v in rows], axis=0)
        other = np.mean([formula(table.text[t], table.image[i]) for t in rows], axis=0)
        every = np.mean(
            [formula(table.text[t], table.image[v]) for t in rows for v in rows], axis=0
        )
        out.append(own + other - every)
    return np.array(out)


def pairs_with_repeats(n=40):
    generator = np.random.default_rng(0)
    return Table(generator.integers(0, 9, n) / 4, generator.integers(0, 13, n) / 5)


def test_emap_is_what_the_definition_says():
    table = pairs_with_repeats()
    rows = np.arange(5, 37)
    model = Formula(table, interacting)
    found = emap(model, table, rows, seed=0)
    assert found.exact
    assert found.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(found.logits, brute_force(table, interacting, rows), atol=1e-6)
    # Equal texts and images are computed once: at most 9 x 13 twice, not 32 x 32.
    assert model.calls <= 2 * 9 * 13


def test_an_additive_model_is_its_own_emap():
    table = pairs_with_repeats()
    rows = np.arange(40)
    model = Formula(table, additive)
    found = emap(model, table, rows, seed=0)
    np.testing.assert_allclose(found.logits, model.logits(rows), atol=1e-6)


def test_a_sampled_emap_of_an_additive_model_is_exact_too():
    generator = np.random.default_rng(1)
    table = Table(generator.normal(size=200), generator.normal(size=200))
    model = Formula(table, additive)
    found = emap(model, table, np.arange(200), seed=0, most=16, pairs=50)
    assert not found.exact
    assert len(found.rows) == 50
    np.testing.assert_allclose(found.logits, model.logits(found.rows), atol=1e-5)
    assert model.calls < 200 * 200 / 8


@pytest.mark.slow
def test_a_sampled_emap_is_near_the_exact_one():
    generator = np.random.default_rng(1)
    table = Table(generator.normal(size=300), generator.normal(size=300))
    model = Formula(table, interacting)
    exact = emap(model, table, np.arange(300), seed=0, most=300)
    sampled = emap(model, table, np.arange(300), seed=0, most=150)
    assert exact.exact
    assert not sampled.exact
    assert np.abs(sampled.logits - exact.logits).mean() < 0.1 * np.abs(exact.logits).mean()


def test_emap_of_tags_is_taken_position_by_position():
    lengths = [2, 3, 1, 3]
    table = Table([1.0, 2, 3, 4], [5.0, 6, 5, 7], lengths)

    def formula(t, v):
        row = [[t * v + position, v - position * t] for position in range(3)]
        keep = np.arange(3) < lengths[int(t) - 1]
        return np.where(keep[:, None], row, 0)

    model = Formula(table, formula)
    found = emap(model, table, np.arange(4), seed=0, per_token=True)
    assert found.logits.shape == (4, 3, 2)
    for i in range(4):
        for k in range(lengths[i]):
            there = [t for t in range(4) if lengths[t] > k]
            own = np.mean([formula(table.text[i], v)[k] for v in table.image], axis=0)
            other = np.mean([formula(table.text[t], table.image[i])[k] for t in there], axis=0)
            every = np.mean(
                [formula(table.text[t], v)[k] for t in there for v in table.image], axis=0
            )
            np.testing.assert_allclose(found.logits[i, k], own + other - every, atol=1e-5)


def test_a_product_without_interaction_is_chance():
    """The sign of a product is pure interaction: nothing is left of it."""
    generator = np.random.default_rng(0)
    text, image = generator.choice([-1.0, 1.0], (2, 200))
    table = Table(text, image)
    targets = Targets("classify", ("no", "yes"), (text * image > 0).astype(np.int64))
    model = Formula(table, lambda t, v: [0, t * v])
    rows, groups = np.arange(200), np.arange(200)
    assert headline(flatten(targets, model.logits(rows), groups)) == 1
    found = emap(model, table, rows, seed=0)
    assert abs(headline(flatten(targets, found.logits, groups)) - 0.5) < 0.1


def test_partners_are_of_another_group():
    groups = np.repeat(np.arange(5), [1, 30, 2, 3, 4])
    for seed in range(20):
        partners = other_rows(np.arange(40), groups, np.random.default_rng(seed))
        assert not (groups[partners] == groups).any()
    assert other_rows(np.arange(4), np.zeros(4, int), np.random.default_rng(0)) is None


@pytest.mark.parametrize(("side", "expected"), [("image", 0.5), ("text", 1.0)])
def test_shuffling_the_side_that_decides_leaves_chance(side, expected):
    generator = np.random.default_rng(3)
    image = generator.choice([0.0, 1.0], 400)
    table = Table(generator.normal(size=400), image)
    targets = Targets("classify", ("no", "yes"), image.astype(np.int64))
    model = Formula(table, lambda t, v: [0, v])
    found = shuffled_metric(model, targets, np.arange(400), np.arange(400), side, seed=0)
    assert found.mean == pytest.approx(expected, abs=0.04)
    assert found.lowest <= found.mean <= found.highest
    assert found.times == 5


def test_negatives_of_match_stand_behind_the_pairs():
    numbers = np.arange(30.0)
    table = Table(numbers, numbers)
    model = Formula(table, lambda t, v: [-abs(t - v)])
    logits = with_negatives(model, np.arange(30), np.arange(30) // 2, seed=0)
    assert logits.shape == (60, 1)
    assert (logits[:30] == 0).all()
    assert (logits[30:] < 0).all()
