"""The tasks of docs/training_tasks.py: the rule that made the labels is what can be reached."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fusecli.training.bootstrap import headline
from fusecli.training.fitted import FitInfo
from fusecli.training.flat import flatten

SCRIPT = Path(__file__).parents[2] / "docs" / "training_tasks.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_tasks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_tasks"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["training_tasks"]


def made(script, name, n=400):
    layout = script.Layout(12, 10, script.PATCHES, (3, 8))
    sides = script.Sides(n, layout, np.random.default_rng(0))
    return sides, *script.TASKS[name][0](sides)


@pytest.mark.parametrize(
    "name",
    ["product", "additive", "curved", "both", "text only", "image only", "pointer", "classes",
     "regression", "labels", "tags"],
)  # fmt: skip
def test_the_rule_is_far_above_chance(script, name):
    _, targets, rule = made(script, name)
    rows = np.arange(400)
    reached = headline(flatten(targets, rule, rows))
    shuffled = np.random.default_rng(1).permutation(rows)
    chance = headline(flatten(targets, rule[shuffled], rows))
    assert reached > chance + 0.15


def test_noise_has_no_rule(script):
    _, targets, rule = made(script, "noise")
    assert rule is None
    assert 0.4 < targets.values.mean() < 0.6


def test_features_are_unnormalised_and_correlated(script):
    sides, _, _ = made(script, "product", n=60)
    examples = sides.examples()
    assert (examples.image_dim, examples.text_dim) == (12, 10)
    found = examples.statistics("image", np.arange(60))
    assert found.std.max() > 5 * found.std.min()
    assert np.abs(found.mean).max() > found.std.mean()


def test_every_task_is_in_the_list(script):
    assert "noise" in script.TASKS
    assert len(script.TASKS) == 12


class Answers:
    """A model that is right with a certain share of its answers."""

    def __init__(self, name, targets, right):
        self.name, self.info = name, FitInfo("given")
        rng = np.random.default_rng(0)
        said = np.where(rng.random(len(targets.values)) < right, targets.values, 1 - targets.values)
        logits = 2 * np.eye(2)[said] + 0.5 * rng.standard_normal((len(said), 2))
        self.all = logits.astype(np.float32)
        self.tuning_rows = np.arange(40)
        self.tuning_logits = self.all[:40]

    def logits(self, rows):
        return self.all[rows]


@pytest.mark.slow
def test_what_verdicts_say_is_counted(script, monkeypatch):
    def fit(examples, targets, *_):
        shares = {"text only": 0.5, "image only": 0.5, "additive": 0.85, "concat + MLP": 0.5}
        return [
            Answers(name, targets, right) for name, right in (shares | {"fusion": 0.85}).items()
        ]

    monkeypatch.setattr(script, "fit", fit)
    monkeypatch.setattr(script, "TEST", 400)
    monkeypatch.setattr(script, "LAYOUTS", {"pooled": script.Layout(5, 6, 1, (1, 1))})
    row = script.run("additive", "pooled", 1000, 0, None)
    # The additive model is the fusion: nothing to find, and intervals from 0 to 0 hold the truth.
    assert (row.interaction, row.image, row.parts) == (0, 2, 2)
    assert row.intervals == 4
    assert 0 <= row.missed <= 2  # those against text only
    monkeypatch.setattr(script, "_differences", lambda *_: dict.fromkeys(
        ("text only", "additive"), script.Interval(0.1, 0.05, 0.15)
    ))  # fmt: skip
    row = script.run("additive", "pooled", 1000, 0, None)
    assert (row.interaction, row.image, row.missed) == (2, 2, 4)
