"""What the numbers are said to mean: one sentence for every outcome, and no claim beyond it."""

from __future__ import annotations

import math

import pytest

from fusecli.training.bootstrap import Interval
from fusecli.training.interaction import Interaction
from fusecli.training.report import Facts, aligned, metrics_json, report_md, table_rows
from fusecli.training.shuffle import Shuffled
from fusecli.training.verdict import between, interaction_sentences, signed, verdict
from tests.training.results import HARMS, HELPS, SMALL, model, result


def test_the_image_helps_and_part_of_it_is_interaction():
    assert verdict(result(text_only=HELPS, additive=(0.09, 0.05, 0.13), image_only=HELPS)) == [
        "the image helps: AUC +0.11 (95 % 0.08 to 0.14); of that +0.090 is interaction "
        "(95 % 0.05 to 0.13)"
    ]


def test_all_of_the_gain_is_interaction():
    (line,) = verdict(result(text_only=HELPS, additive=(0.12, 0.09, 0.15), image_only=HELPS))
    assert line.endswith("all of it is interaction: without it the image adds nothing to the text")


def test_the_image_helps_without_interaction():
    (line,) = verdict(result(text_only=HELPS, additive=SMALL, image_only=HELPS))
    assert line.endswith(
        "interaction adds nothing that is shown: +0.010 over the additive model "
        "(95 % -0.02 to 0.04)"
    )


def test_an_additive_model_that_is_better_is_named():
    (line,) = verdict(result(text_only=HELPS, additive=HARMS, image_only=HELPS))
    assert line.endswith(
        "the additive model, without interaction, is better than the fusion: +0.050 "
        "(95 % 0.02 to 0.08)"
    )
    lines = verdict(result(text_only=SMALL, additive=HARMS, image_only=HELPS))
    assert len(lines) == 2
    assert lines[1].startswith("the additive model, without interaction, is better")


def test_that_the_image_helps_is_not_shown_or_it_does_harm():
    (line,) = verdict(result(groups=48, text_only=SMALL, additive=SMALL, image_only=HELPS))
    assert line == ("not shown that the image helps (48 groups): AUC +0.010 (95 % -0.02 to 0.04)")
    (line,) = verdict(result(text_only=HARMS, additive=SMALL, image_only=HELPS))
    assert line.startswith("the image does harm: the fusion is worse than text only: AUC -0.050")


def test_the_text_and_the_simplest_fusion_are_looked_at_too():
    lines = verdict(
        result(text_only=HELPS, additive=HELPS, image_only=SMALL, **{"concat + MLP": HARMS})
    )
    assert lines[1] == (
        "that the text helps is not shown: AUC +0.010 over image only (95 % -0.02 to 0.04)"
    )
    assert lines[2] == "concat + MLP is better than the fusion here: AUC +0.050 (95 % 0.02 to 0.08)"


def test_an_image_that_is_better_alone_is_named():
    lines = verdict(result(text_only=HELPS, additive=HELPS, image_only=HARMS))
    assert lines[1:] == [
        "the text does harm: image only is better than the fusion: AUC +0.050 (95 % 0.02 to 0.08)"
    ]


def test_few_groups_are_warned_of():
    lines = verdict(result(groups=29, text_only=HELPS, additive=HELPS, image_only=HELPS))
    assert lines[-1].startswith("warning: 29 groups in the test part: with fewer than 30")


def test_numbers_are_as_long_as_they_have_to_be():
    assert [signed(v) for v in (0.11, -0.2, 0.004, 0.0994, math.nan)] == [
        "+0.11", "-0.20", "+0.004", "+0.099", "unknown",
    ]  # fmt: skip
    assert between(Interval(0.1, 0.08, 0.14)) == "95 % 0.08 to 0.14"
    assert between(Interval(0.1, 0.004, 0.14)) == "95 % 0.004 to 0.140"
    assert between(Interval(0.1, math.nan, math.nan)) == "no interval"


def interaction(worth, images=0.7):
    shuffled = Shuffled(images, images - 0.01, images + 0.01, 5)
    return Interaction("AUC", 0.9, 0.78, Interval(*worth), False, 1024, shuffled, None)


def test_what_interaction_is_worth_in_two_lines_and_a_meaning():
    assert interaction_sentences(interaction(HELPS)) == [
        "without interaction (EMAP, on a sample of 1,024 pairs): AUC 0.780, with it 0.900: "
        "within this model, interaction is worth +0.11 (95 % 0.08 to 0.14)",
        "shuffled across groups: images AUC 0.700",
        "meaning: the fusion reads text and image together; a sum of what each says by itself does "
        "not reach it",
    ]
    assert "as a sum of what text and image say" in interaction_sentences(interaction(SMALL))[-1]
    last = interaction_sentences(interaction(SMALL, images=0.895))[-1]
    assert last.endswith("does as well with wrong images: it does not use them")


def test_the_table_has_a_line_a_model_and_leaves_out_what_is_unknown():
    rows = table_rows(result(text_only=HELPS))
    assert rows[0] == [
        "model", "AUC (95 %)", "av. prec.", "accuracy", "bal. acc.", "F1", "log loss",
    ]  # fmt: skip
    assert rows[-1] == ["fusion", "0.800 (0.750 to 0.850)", "0.700", "0.750", "", "", "0.500"]
    lines = aligned(rows)
    assert len({line.index("0.800") for line in lines[1:]}) == 1
    assert not any(line.endswith(" ") for line in lines)


def test_the_report_says_what_is_measured_and_escapes_names():
    one = result(text_only=HELPS, additive=HELPS, image_only=HELPS)
    facts = Facts("Training run: classify", ("a|b", "yes"), {"train": 70, "test": 100}, ("a note",))
    report = report_md(one, facts)
    assert "Everything below is measured on the test part: 100 pairs in 80 groups." in report
    assert "AUC, average precision and F1 are about the class `yes`." in report
    assert "- the image helps: AUC +0.11" in report
    assert "| text only | +0.11 | +0.080 to +0.14 |" in report
    assert "- a note" in report


def test_seeds_and_folds_are_told_apart_from_the_interval():
    one = result(text_only=HELPS, additive=HELPS, image_only=HELPS)
    one.models[-1] = model("fusion", seeds=(0.78, 0.8, 0.83), folds=(0.7, 0.9))
    metrics = metrics_json(one, Facts("t", ("no", "yes"), {}))
    seeds, folds = metrics["verdict"][-2:]
    assert seeds.startswith("one seed alone gives the fusion AUC 0.780 to 0.830 (3 seeds)")
    assert "fuse and batch --weights use the network of the first seed" in seeds
    assert folds == "mean over 2 folds: AUC 0.800 (0.700 to 0.900); the table pools them"
    assert metrics["models"][-1]["seeds"] == [0.78, 0.8, 0.83]


def test_what_counts_in_the_fusion_and_what_its_network_gives_alone():
    one = result(text_only=HELPS, additive=HELPS, image_only=HELPS)
    shares = {"fusion": 0.6, "additive": 0.4}
    one.models[-1] = model("fusion", shares=shares, network=0.71)
    metrics = metrics_json(one, Facts("t", ("no", "yes"), {}))
    assert metrics["verdict"][-1] == (
        "the fusion of the table is a weighted sum: 60 % its network, 40 % additive; its network "
        "alone gives AUC 0.710, and fuse and batch --weights take the network alone"
    )
    assert metrics["models"][-1]["shares"] == shares
    one.models[-1] = model("fusion", shares=shares, network=0.71, seeds=(0.7, 0.72))
    seeds = metrics_json(one, Facts("t", ("no", "yes"), {}))["verdict"][-1]
    assert seeds.startswith(
        "one seed alone gives the fusion's network AUC 0.700 to 0.720 (2 seeds)"
    )
    assert metrics["models"][-1]["network"] == 0.71
    one.models[-1] = model("fusion")
    assert not any(
        "weighted sum" in line for line in metrics_json(one, Facts("t", (), {}))["verdict"]
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_computed_is_null_in_the_json(value):
    one = result(text_only=(value, value, value))
    found = metrics_json(one, Facts("t", ("no", "yes"), {}))
    assert found["fusion_minus"]["text only"] == {"value": None, "low": None, "high": None}
