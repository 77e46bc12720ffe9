"""What a fusion has to learn, and what the baselines cannot, on tasks whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusecli.fusion.options import ModuleOptions
from fusecli.pairs.pair import PairOptions
from fusecli.training.calibration import fit_temperature, log_loss
from fusecli.training.fit import fit
from fusecli.training.fit_progress import Quiet
from fusecli.training.flat import flatten
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.score import score_of
from tests.training import generators


def trained(images, texts, targets, split=None, **options):
    """Fitted models by name, their scores on the test part, and the split.

    The validation part counts as given, so that nothing is trained by folds: seconds a test.
    """
    examples = generators.examples_of(images, texts)
    split = split or generators.thirds(examples.n)
    targets = replace(targets, split=tuple(split.parts()))
    given = {"device": "cpu", "seeds": 1, "method": "attention"} | options
    told = TrainOptions(PairOptions(), LabelOptions(), "run", **given)
    fitted = {f.name: f for f in fit(examples, targets, split, told, Quiet())}
    scores = {}
    for name, model in fitted.items():
        logits = model.logits(split.test)
        if targets.task == "match":
            wrong = model.logits(split.test, np.roll(split.test, 1))
            logits = np.concatenate([logits, wrong])
        scores[name] = score_of(logits, targets, split.test)[0]
    return fitted, scores, split


def additive_part(model, rows):
    """EMAP by its definition: mean over images plus mean over texts minus mean over both."""
    all_pairs = model.cross_logits(rows, rows)  # [n, n, C]
    means = all_pairs.mean(axis=1, keepdims=True) + all_pairs.mean(axis=0, keepdims=True)
    emap = means - all_pairs.mean(axis=(0, 1), keepdims=True)
    return emap[np.arange(len(rows)), np.arange(len(rows))]


@pytest.mark.slow
def test_pointer_is_learnt_by_attention_alone():
    images, texts, labels = generators.pointer(3000, np.random.default_rng(0), patches=6)
    _, scores, _ = trained(images, texts, generators.classes(labels), epochs=6)
    assert scores["fusion"] > 0.95
    for name in ("text only", "image only", "additive", "concat + MLP"):
        assert 0.4 < scores[name] < 0.6, name


@pytest.mark.slow
def test_a_product_is_learnt_with_an_interaction_only():
    images, texts, labels = generators.product(800, np.random.default_rng(0))
    # Most pairs are held out: chance itself is then known to a few hundredths.
    parts = generators.thirds(800, test=0.53, validation=0.1)
    targets = generators.classes(labels)
    fitted, scores, split = trained(images, texts, targets, parts, epochs=20)
    assert scores["fusion"] > 0.95
    assert scores["concat + MLP"] > 0.9
    assert max(scores["text only"], scores["image only"], scores["additive"]) < 0.65
    # Without interaction no more than chance is left of the fusion.
    logits = additive_part(fitted["fusion"], split.test)
    assert score_of(logits, targets, split.test)[0] < 0.6


@pytest.mark.slow
def test_an_additive_model_is_its_own_additive_part():
    images, texts, labels = generators.additive(400, np.random.default_rng(0))
    fitted, scores, split = trained(images, texts, generators.classes(labels), epochs=8)
    assert scores["additive"] > 0.95
    assert scores["fusion"] > scores["additive"] - 0.02
    assert max(scores["text only"], scores["image only"]) < 0.93
    rows = split.test[:40]
    logits = fitted["additive"].logits(rows)
    np.testing.assert_allclose(additive_part(fitted["additive"], rows), logits, atol=1e-4)
    assert (
        np.abs(additive_part(fitted["fusion"], rows) - fitted["fusion"].logits(rows)).max() > 0.01
    )


@pytest.mark.slow
def test_an_image_of_noise_does_not_make_the_fusion_worse_than_the_text():
    images, texts, labels = generators.text_only(900, np.random.default_rng(0), width=8)
    _, scores, _ = trained(images, texts, generators.classes(labels), epochs=12)
    assert scores["text only"] > 0.9
    assert scores["fusion"] > scores["text only"] - 0.01


@pytest.mark.slow
def test_tags_that_depend_on_token_and_patch():
    images, texts, targets = generators.tags(500, np.random.default_rng(0))
    fitted, scores, split = trained(images, texts, targets, epochs=15)
    assert scores["fusion"] > 0.95
    assert scores["concat + MLP"] > 0.6
    assert max(scores["text only"], scores["image only"], scores["additive"]) < 0.6
    assert fitted["fusion"].logits(split.test).shape == (len(split.test), 5, 3)


@pytest.mark.slow
def test_thirty_imbalanced_classes():
    images, texts, targets = generators.many_classes(1500, np.random.default_rng(0))
    _, scores, _ = trained(images, texts, targets, epochs=12)
    assert scores["fusion"] > 0.9
    assert max(scores["text only"], scores["image only"]) < 0.75
    assert scores["majority"] < 0.35


@pytest.mark.slow
def test_a_regression_in_the_unit_of_the_labels():
    images, texts, targets = generators.regression(600, np.random.default_rng(0))
    fitted, scores, split = trained(images, texts, targets, epochs=30)
    assert scores["fusion"] > 0.85
    assert scores["additive"] < 0.4
    assert scores["majority"] == pytest.approx(0, abs=0.05)
    # The additive part is of predictions, so that its mean is theirs.
    values = fitted["fusion"].cross_logits(split.test[:9], split.test[:9])
    assert 4500 < values.mean() < 5500


@pytest.mark.slow
def test_images_are_matched_to_texts():
    images, texts, targets = generators.matching(900, np.random.default_rng(0))
    fitted, scores, _ = trained(images, texts, targets, epochs=30)
    assert set(fitted) == {"concat + MLP", "fusion"}
    assert scores["fusion"] > 0.85


@pytest.mark.slow
def test_several_labels_of_a_pair():
    images, texts, targets = generators.several_labels(500, np.random.default_rng(0))
    fitted, scores, split = trained(images, texts, targets, epochs=20)
    assert scores["fusion"] > 0.95
    assert scores["additive"] < 0.9
    assert fitted["majority"].logits(split.test).shape == (len(split.test), 3)


@pytest.mark.parametrize("method", ["attention", "transformer", "sum", "concat"])
def test_cross_logits_are_the_logits_of_all_combinations(method):
    images, texts, labels = generators.product(60, np.random.default_rng(0))
    texts = [t[: 1 + i % 4] for i, t in enumerate(texts)]
    module = ModuleOptions(dim=16, layers=1) if method == "transformer" else ModuleOptions(dim=16)
    fitted, _, _ = trained(
        images, texts, generators.classes(labels), epochs=1, method=method, module=module, seeds=2
    )
    text_rows, image_rows = np.array([3, 0, 10]), np.array([7, 3])
    for model in fitted.values():
        expected = np.stack(
            [[model.logits(np.array([t]), np.array([i]))[0] for i in image_rows] for t in text_rows]
        )
        found = model.cross_logits(text_rows, image_rows)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_auto_takes_the_candidate_that_is_best_on_held_out_rows():
    notes = []

    class Noting(Quiet):
        def note(self, text):
            notes.append(text)

    images, texts, labels = generators.pointer(500, np.random.default_rng(0), patches=4)
    examples = generators.examples_of(images, texts)
    options = TrainOptions(
        PairOptions(), LabelOptions(), "run", device="cpu", seeds=1, epochs=8, method="auto"
    )
    fitted = fit(examples, generators.classes(labels), generators.thirds(500), options, Noting())[
        -1
    ]
    assert fitted.info.variant.startswith("attention")
    assert max(fitted.info.scores, key=fitted.info.scores.get) == fitted.info.variant
    assert any(note.startswith(f"fusion: {fitted.info.variant} is the best") for note in notes)


@pytest.mark.slow
def test_seeds_are_averaged():
    images, texts, labels = generators.product(100, np.random.default_rng(0))
    fitted, _, split = trained(images, texts, generators.classes(labels), epochs=2, seeds=3)
    model = fitted["fusion"]
    alone = [model.alone(i).logits(split.test) for i in range(3)]
    assert not np.allclose(alone[0], alone[1])
    np.testing.assert_allclose(model.logits(split.test), np.mean(alone, axis=0), atol=1e-6)


@pytest.mark.slow
def test_the_additive_line_is_never_below_one_side_on_validation():
    images, texts, labels = generators.text_only(120, np.random.default_rng(0), width=8)
    targets = generators.classes(labels)
    fitted, _, split = trained(images, texts, targets, epochs=2)
    additive = fitted["additive"]
    sides = [fitted[name] for name in ("text only", "image only")]
    models = {model.name: model for model in [*sides, additive.network()]}
    rows = additive.tuning_rows

    def loss(logits):
        flat = flatten(targets.take(rows), logits, rows)
        return log_loss(flat, fit_temperature(flat))

    on_validation = loss(additive.tuning_logits)
    assert on_validation <= min(loss(model.logits(rows)) for model in models.values()) + 1e-6
    # It is the sum that it says.
    assert additive.shares.keys() <= models.keys()
    factors = additive.blend.factors
    expected = sum(factor * models[name].logits(split.test) for name, factor in factors.items())
    np.testing.assert_allclose(additive.logits(split.test), expected, rtol=1e-5, atol=1e-6)
    assert set(additive.info.scores) >= {"linear", "MLP"}
    assert additive.info.scores[additive.info.variant] == max(additive.info.scores.values())


@pytest.mark.slow
def test_only_auto_adds_other_models_to_the_fusion():
    images, texts, labels = generators.text_only(120, np.random.default_rng(0), width=8)
    targets = generators.classes(labels)
    fitted, _, _ = trained(images, texts, targets, epochs=2, method="concat")
    assert fitted["fusion"].shares == {}
    fitted, _, _ = trained(images, texts, targets, epochs=2, method="auto")
    assert "additive" in fitted["fusion"].shares
    assert sum(fitted["fusion"].shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("task", ["regression", "tags", "several_labels", "matching"])
def test_a_fusion_of_every_task_is_the_sum_that_it_says(task):
    images, texts, targets = getattr(generators, task)(80, np.random.default_rng(0))
    fitted, _, split = trained(images, texts, targets, epochs=1, method="auto")
    fusion = fitted["fusion"]
    centre = fusion.members[0].centre
    models = {**fitted, "fusion": fusion.network()}
    expected = centre + sum(
        factor * (models[name].logits(split.test) - centre)
        for name, factor in fusion.blend.factors.items()
    )
    found = fusion.logits(split.test)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert sum(fusion.shares.values()) == pytest.approx(1)
    if task == "regression":
        assert 4500 < found.mean() < 5500
    if task == "matching":
        assert fusion.shares.keys() <= {"fusion", "concat + MLP"}
    rows = fusion.tuning_rows
    assert len(fusion.tuning_logits) == len(rows) * (2 if task == "matching" else 1)


def test_the_score_that_stops_training_counts_weights():
    targets = generators.classes([0, 1, 2, 0], ("a", "b", "c"))
    targets = replace(targets, weight=np.array([1, 1, 1, 5], np.float32))
    logits = np.eye(3, dtype=np.float32)[[0, 1, 0, 1]]  # the last two are wrong
    rows = np.arange(4)
    assert score_of(logits, targets, rows) == (pytest.approx(2 / 8), "accuracy")
    assert score_of(logits[:3], targets, rows[:3]) == (pytest.approx(2 / 3), "accuracy")


def test_a_score_without_both_classes_is_minus_the_loss():
    targets = generators.classes([1, 1], ("no", "yes"))
    value, name = score_of(np.zeros((2, 2), np.float32), targets, np.arange(2))
    assert (value, name) == (pytest.approx(-np.log(2)), "minus log loss")
