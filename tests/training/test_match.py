"""`match`: does this image belong to this text; from files to the table, with few models."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.weights import ModuleOptions
from fusecli.pairs.pair import PairOptions
from fusecli.training.evaluate import RunOptions, evaluate_run, predict_run
from fusecli.training.fit_progress import Quiet
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.train import run_training
from tests.training import generators

pytestmark = pytest.mark.slow


class Silent(Quiet):
    def reading(self, done, total):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("match")
    images, texts, _ = generators.matching(240, np.random.default_rng(0), width=8, kinds=6)
    for side, features in (("img", images), ("txt", texts)):
        (folder / side).mkdir()
        for number, tokens in enumerate(features):
            np.save(folder / side / f"p{number:03d}.npy", tokens.astype(np.float32))
    pairs = PairOptions(str(folder / "img"), str(folder / "txt"))
    options = TrainOptions(
        pairs, LabelOptions(), str(folder / "run"), ReadOptions(), "attention",
        ModuleOptions(dim=16), epochs=6, lr=0.01, seeds=1, device="cpu",
    )  # fmt: skip
    told = []
    outcome = run_training(options, told.append, Silent())
    return folder, pairs, outcome, told


def test_the_task_is_told_and_only_baselines_that_see_both_sides_are_trained(run):
    _, _, outcome, told = run
    assert any(line.startswith("note: no labels are given: task match") for line in told)
    assert outcome.metrics["task"] == "match"
    assert [model["name"] for model in outcome.metrics["models"]] == ["concat + MLP", "fusion"]


def test_temperature_and_threshold_come_from_held_out_pairs(run):
    _, _, outcome, _ = run
    for model in outcome.metrics["models"]:
        assert 0.05 < model["temperature"] < 20
        assert model["temperature"] != 1.0
        (threshold,) = model["thresholds"]
        assert 0 < threshold < 1
        assert model["validation"] > 0.5


def test_recall_is_given_in_both_directions(run):
    _, _, outcome, _ = run
    for model in outcome.metrics["models"]:
        found = model["retrieval"]
        assert found["candidates"] <= 48
        for direction in ("text_to_image", "image_to_text"):
            ranks = [found[f"{direction}_recall@{k}"] for k in (1, 5, 10)]
            assert ranks == sorted(ranks)
    head = outcome.metrics["table"][0]
    assert "text→image R@1" in head
    assert "image→text R@5" in head


def test_the_verdict_is_about_own_and_other_images(run):
    _, _, outcome, _ = run
    first, second, *_ = outcome.metrics["verdict"]
    auc = outcome.metrics["models"][-1]["headline"]["value"]
    assert first.startswith("the fusion finds a text's own image: AUC")
    assert f"AUC {auc:.3f}" in first
    assert second.startswith("over concat + MLP: ")


def test_evaluate_offers_no_emap_and_predict_uses_the_threshold(run, tmp_path):
    folder, pairs, outcome, _ = run
    told = []
    metrics, _ = evaluate_run(RunOptions(str(folder / "run"), pairs), told.append, Silent())
    assert metrics["interaction"] is None
    test = outcome.metrics["models"][-1]["headline"]["value"]
    assert metrics["models"][-1]["headline"]["value"] == pytest.approx(test)
    output = str(tmp_path / "p.csv")
    predict_run(RunOptions(str(folder / "run"), pairs, output=output), told.append, Silent())
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    stored = json.loads((folder / "run" / "metrics.json").read_text())
    (threshold,) = stored["models"][-1]["thresholds"]
    for row in rows:
        assert row["label"] == ("true" if float(row["probability"]) >= threshold else "false")
    assert len({row["label"] for row in rows}) == 2
