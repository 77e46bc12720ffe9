"""A stored network takes raw features and gives what the trained one gave, whatever the method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusecli.fusion.methods import METHODS
from fusecli.fusion.options import ModuleOptions
from fusecli.training.candidates import fusion_configs, make_candidates
from fusecli.training.model import TorchBatch
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.stored import Member
from tests.training.generators import classes, examples_of

CASES = {name: (name, ModuleOptions()) for name in METHODS} | {
    "gated attention": ("attention", ModuleOptions(gate=True)),
    "attention of width 12": ("attention", ModuleOptions(dim=12, heads=3)),
}
DEVICE = torch.device("cpu")


def options(method, module):
    return TrainOptions(None, LabelOptions(), "run", method=method, module=module)


@pytest.fixture(scope="module")
def examples():
    """Features far from mean 0 and spread 1, as those of many encoders are."""
    rng = np.random.default_rng(0)
    images = [rng.normal(-20, 3, (4, 6)) for _ in range(24)]
    texts = [rng.normal(50, 10, (3, 8)) for _ in range(24)]
    return examples_of(images, texts)


@pytest.mark.parametrize("case", CASES)
def test_a_stored_network_gives_what_the_trained_one_gave(case, examples):
    candidates = make_candidates(examples, classes([0, 1] * 12), options(*CASES[case]), 24)
    spec = next(c.spec for c in candidates if c.family == "fusion")
    rows = np.arange(24)
    text, image = spec.statistics(examples, rows)
    torch.manual_seed(1)
    model = spec.build(text, image).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" not in name:  # a gate that is open, a bias
                parameter.normal_()
    stored = Member.of(spec, model, text, image, 0.0, 1.0).build(DEVICE)
    batch = TorchBatch.of(examples.batch(rows, pooled=model.pooled), DEVICE)
    with torch.inference_mode():
        expected, found = model(batch), stored(batch)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_training_sets_width_heads_and_switches_where_options_do_not(examples):
    def config(method, **given):
        (found,) = fusion_configs(examples, options(method, ModuleOptions(**given)), 24)
        return replace(found, image_dim=0, text_dim=0)

    assert (
        config("attention").to_dict() | {"embed_dim": 128, "num_heads": 4}
        == config("attention").to_dict()
    )
    assert (config("attention").residual, config("attention").norm) == (True, True)
    assert config("attention", residual=False).residual is False
    assert config("attention", dim=6, heads=3).num_heads == 3
    gated = config("attention", gate=True)
    assert (gated.embed_dim, gated.num_heads, gated.residual) == (8, 4, False)
    for method in ("concat", "sum"):
        assert config(method).projected
        assert config(method).embed_dim == 128
    assert config("transformer", dim=8).num_heads == 4
    assert config("bilinear").rank == 128
