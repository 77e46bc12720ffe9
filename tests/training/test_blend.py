"""Sums of models: their weights, what they give, and how a run's folder keeps them."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import torch

from fusecli.errors import FeatureFileError, OutputError
from fusecli.fusion.config import FusionConfig
from fusecli.training import blend as blend_module
from fusecli.training.blend import Blend, _Loss, blend, parts_of
from fusecli.training.calibration import log_loss
from fusecli.training.candidates import ModelSpec
from fusecli.training.evaluate import LoadedRun
from fusecli.training.fitted import FitInfo, Fitted
from fusecli.training.flat import flatten
from fusecli.training.run_folder import RunFolder
from fusecli.training.standardise import unit_statistics
from fusecli.training.stored import Member
from fusecli.training.stored_run import load_run
from fusecli.training.targets import IGNORED, Targets
from tests.training import generators

RNG = np.random.default_rng


def two_classes(n, rng, *strengths):
    """Labels, and logits of models that see them so well; calibrated but for their scale."""
    labels = rng.integers(2, size=n)
    flats = {}
    for number, strength in enumerate(strengths):
        seen = strength * (2 * labels - 1) + rng.standard_normal(n)
        logits = np.stack([np.zeros(n), 2 * strength * seen], axis=1)
        flats[f"model {number}"] = flatten(generators.classes(labels), logits, np.arange(n))
    return flats


def summed(flats, found):
    first = next(iter(flats.values()))
    return first.with_logits(sum(f * flats[name].logits for name, f in found.factors.items()))


def test_models_that_see_different_things_are_added_up():
    """Independent evidence: the sum of calibrated logits is the best there is."""
    flats = two_classes(4000, RNG(0), 0.8, 0.8)
    found = blend(flats)
    assert found.factors["model 0"] == pytest.approx(1, abs=0.15)
    assert found.factors["model 1"] == pytest.approx(1, abs=0.15)
    assert sum(found.shares.values()) == pytest.approx(1)
    alone = min(log_loss(flat) for flat in flats.values())
    assert log_loss(summed(flats, found)) < alone - 0.1


def test_a_model_that_sees_nothing_does_not_count():
    flats = two_classes(2000, RNG(0), 1.0, 0.0)
    assert blend(flats).shares == {"model 0": 1.0}
    # Not even where the sum begins with it.
    assert blend(flats, start="model 1").shares.keys() == {"model 0"}


def test_few_rows_leave_the_sum_where_it_begins():
    """What 20 rows seem to show does not replace the simple model; 2,000 rows do."""
    few, many = (blend(two_classes(n, RNG(3), 0.5, 0.6), "model 0").shares for n in (20, 2000))
    assert few["model 0"] > 0.75
    assert many["model 0"] < 0.55


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 300])
def test_the_sum_is_never_worse_on_these_rows_than_the_model_it_begins_with(n):
    for seed in range(10):
        flats = two_classes(n, RNG(seed), 0.3, 0.3, 0.2)
        found = blend(flats, "model 2")
        start = flats["model 2"]
        calibrated = min(log_loss(start, t) for t in np.geomspace(0.05, 20, 500))
        assert log_loss(summed(flats, found)) < calibrated + 2e-3


def test_the_scale_of_a_models_logits_does_not_matter():
    flats = two_classes(300, RNG(1), 0.5, 0.5)
    found = blend(flats)
    larger = flats | {"model 1": flats["model 1"].with_logits(4 * flats["model 1"].logits)}
    again = blend(larger)
    assert again.shares == pytest.approx(found.shares, rel=1e-3)
    assert 4 * again.factors["model 1"] == pytest.approx(found.factors["model 1"], rel=1e-3)


@pytest.mark.slow
def test_the_weights_are_those_of_a_search_over_all(monkeypatch):
    flats = two_classes(200, RNG(2), 0.4, 0.6)
    monkeypatch.setattr(blend_module, "_temperature", lambda flat: 1.0)
    found = blend(flats, "model 0")
    grid = np.arange(0, 1.5, 0.01)
    truth = flats["model 0"].truth

    def cost(a, b):
        total = a * flats["model 0"].logits + b * flats["model 1"].logits
        chance = np.exp(total[np.arange(200), truth]) / np.exp(total).sum(axis=1)
        prior = ((a - 1) ** 2 + b**2) / (2 * blend_module._SPREAD**2)
        return -np.log(chance).sum() + prior

    best = min((cost(a, b), a, b) for a in grid for b in grid)[1:]
    assert [found.factors[name] for name in flats] == pytest.approx(best, abs=0.01)


def test_numbers_are_added_up_by_least_squares():
    rng = RNG(0)
    truth = rng.standard_normal(3000)
    first, second = (truth + rng.standard_normal(3000) for _ in range(2))
    targets = Targets("regress", (), truth.astype(np.float32))
    flats = {
        name: flatten(targets, values[:, None], np.arange(3000))
        for name, values in (("first", first), ("second", second))
    }
    both = np.stack([first, second], axis=1)
    wanted = np.linalg.lstsq(both, truth, rcond=None)[0]
    assert list(blend(flats).factors.values()) == pytest.approx(wanted, abs=0.02)


@pytest.mark.slow
def test_of_very_many_rows_a_part_is_enough(monkeypatch):
    flats = two_classes(6000, RNG(0), 0.6, 0.4)
    whole = blend(flats)
    seen = []
    monkeypatch.setattr(blend_module, "_LARGEST", 4000)
    fit = blend_module.fit_temperature
    monkeypatch.setattr(
        blend_module, "fit_temperature", lambda flat: seen.append(len(flat.group)) or fit(flat)
    )
    part = blend(flats)
    assert seen == [2000, 2000]
    assert part.shares == pytest.approx(whole.shares, abs=0.1)


def flats_of(task):
    rng, n = RNG(0), 12
    if task == "classify":
        targets, shape = generators.classes(np.arange(n) % 3), (n, 3)
    elif task == "multilabel":
        values = rng.integers(2, size=(n, 2)).astype(np.float32)
        targets, shape = Targets("multilabel", ("a", "b"), values), (n, 2)
    elif task == "tag":
        values = np.arange(2 * n).reshape(n, 2) % 3
        values[::3, 1] = IGNORED
        targets, shape = Targets("tag", ("a", "b", "c"), values), (n, 2, 3)
    elif task == "match":
        targets, shape = Targets("match", (), np.ones(n, np.int64)), (2 * n, 1)
    else:
        targets, shape = Targets("regress", (), rng.standard_normal(n).astype(np.float32)), (n, 1)
    return {name: flatten(targets, rng.standard_normal(shape), np.arange(n)) for name in "xyz"}


@pytest.mark.parametrize("task", ["classify", "multilabel", "tag", "match", "regress"])
def test_the_gradient_of_the_loss(task):
    loss = _Loss(flats_of(task), {"x": 1.0, "y": 0.5, "z": 2.0})
    at = np.array([0.3, 0.7, 0.2])
    found = loss.at(at)[1]
    steps = 1e-6 * np.eye(3)
    expected = [(loss.at(at + step)[0] - loss.at(at - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_which_models_are_added_up_in_which_line():
    assert parts_of("additive", ["text only", "image only"]) == ["text only", "image only"]
    assert parts_of("fusion", ["additive", "concat + MLP"]) == ["additive", "concat + MLP"]
    assert parts_of("fusion", ["concat + MLP"]) == ["concat + MLP"]  # `match`
    assert parts_of("image only", ["text only"]) == []


# ---------------------------------------------------------------------------- lines as sums


def untrained(name, examples, number):
    """A line of the table with one network of random weights, for labels of mean 10."""
    spec = ModelSpec("additive", 1, False, 3, 5, width=8)
    if name == "concat + MLP":
        spec = ModelSpec("concat_mlp", 1, False, 3, 5, width=8)
    if name == "fusion":
        config = FusionConfig(8, 2, image_dim=3, text_dim=5, residual=True)
        spec = ModelSpec("fusion", 1, False, 3, 5, width=8, fusion=config.to_dict())
    torch.manual_seed(number)
    text, image = unit_statistics(5), unit_statistics(3)
    member = Member.of(spec, spec.build(text, image), text, image, 10.0, 2.0)
    rows = np.arange(3)
    line = Fitted(name, [member], examples, torch.device("cpu"), FitInfo("MLP"), rows, None)
    line.tuning_logits = line.logits(rows)
    return line


@pytest.fixture
def lines():
    """additive, concat + MLP, and a fusion in which both count."""
    rng = RNG(0)
    examples = generators.examples_of(rng.normal(size=(6, 4, 3)), rng.normal(size=(6, 2, 5)))
    additive, concat, fusion = (
        untrained(name, examples, number)
        for number, name in enumerate(("additive", "concat + MLP", "fusion"))
    )
    shares = {"fusion": 0.5, "additive": 0.3, "concat + MLP": 0.2}
    factors = {"fusion": 0.6, "additive": 0.5, "concat + MLP": 0.25}
    return additive, concat, fusion, fusion.with_parts(Blend(shares, factors), [additive, concat])


def test_a_sum_of_numbers_is_of_their_distances_to_the_mean(lines):
    additive, concat, fusion, line = lines
    rows = np.arange(6)
    parts = [(0.6, fusion), (0.5, additive), (0.25, concat)]
    expected = 10 + sum(factor * (model.logits(rows) - 10) for factor, model in parts)
    np.testing.assert_allclose(line.logits(rows), expected, rtol=1e-5)
    np.testing.assert_allclose(line.tuning_logits, expected[:3], rtol=1e-5)
    crossed = line.cross_logits(rows[:2], rows[3:])
    for text in range(2):
        for image in range(3):
            one = line.logits(np.array([text]), np.array([3 + image]))
            np.testing.assert_allclose(crossed[text, image], one[0], rtol=1e-5)
    np.testing.assert_array_equal(line.network().logits(rows), fusion.logits(rows))
    np.testing.assert_array_equal(line.alone(0).logits(rows), fusion.logits(rows))


def saved(lines, path):
    additive, concat, _, line = lines
    run = RunFolder(str(path), {})
    run.begin()
    run.save_models([additive, concat, line], {"task": "regress", "names": []}, {})
    return str(path)


def test_models_that_another_run_has_left_are_deleted(lines, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"another's")
    run = RunFolder(str(tmp_path / "run"), {})
    run.begin()
    models = tmp_path / "run" / "models"
    models.mkdir()
    (models / "fusion.seed-1.safetensors").write_bytes(b"of a run before")
    (models / "mine.txt").write_text("no model")
    run.save_models([lines[0]], {"task": "regress", "names": []}, {})
    assert sorted(os.listdir(models)) == ["additive.safetensors", "mine.txt"]
    (models / "x.safetensors").symlink_to(other)
    with pytest.raises(OutputError, match=r"x.safetensors: is a link"):
        run.save_models([lines[0]], {"task": "regress", "names": []}, {})
    assert other.read_bytes() == b"another's"


def changed(path, change):
    """Change what `weights.safetensors` says of the head."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["fusecli_head"])
    change(about)
    header["__metadata__"]["fusecli_head"] = json.dumps(about)
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    path.write_bytes(struct.pack("<Q", len(start)) + start + content[8 + size :])


def test_a_folder_keeps_what_counts(lines, tmp_path):
    path = saved(lines, tmp_path / "run")
    run = LoadedRun("regress", (), load_run(path)[1])
    line = lines[3]
    found = run.bind(line._examples, "cpu")[-1]
    assert found.shares == line.shares
    np.testing.assert_array_equal(found.logits(np.arange(6)), line.logits(np.arange(6)))


def test_a_folder_of_the_first_version_has_the_networks_alone(lines, tmp_path):
    path = saved(lines, tmp_path / "run")

    def as_before(about):
        del about["blend"]
        about["version"] = 1

    changed(tmp_path / "run" / "weights.safetensors", as_before)
    found = LoadedRun("regress", (), load_run(path)[1]).bind(lines[3]._examples, "cpu")[-1]
    np.testing.assert_array_equal(found.logits(np.arange(6)), lines[2].logits(np.arange(6)))
    assert found.shares == {}


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        (7, r"what counts in 'fusion' is 7"),
        ({"shares": {}, "factors": {}}, r"what counts in 'fusion' is"),
        ({"shares": {"fusion": 1}, "factors": {"additive": 1}}, "other models count than can"),
        ({"shares": {"majority": 1}, "factors": {"majority": 1}}, "other models count than can"),
        ({"shares": {"fusion": 1}, "factors": {"fusion": -1}}, "is not above 0"),
        ({"shares": {"fusion": 1}, "factors": {"fusion": "1"}}, "is not above 0"),
    ],
)
def test_a_damaged_list_of_what_counts_is_refused(blend, message, lines, tmp_path):
    path = saved(lines, tmp_path / "run")
    changed(tmp_path / "run" / "weights.safetensors", lambda about: about.update(blend=blend))
    with pytest.raises(FeatureFileError, match=f"is damaged, .*{message}"):
        load_run(path)


def test_a_later_version_is_refused(lines, tmp_path):
    path = saved(lines, tmp_path / "run")
    changed(tmp_path / "run" / "weights.safetensors", lambda about: about.update(version=3))
    with pytest.raises(FeatureFileError, match=r"is of version 3, and this fusecli reads up to 2"):
        load_run(path)
