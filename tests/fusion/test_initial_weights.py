"""Seeded initial weights without torch are torch's, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import FusionConfig
from fusecli.errors import UsageError
from fusecli.fusion.initial_weights import LARGEST_SEED, check_seed, initial_weights
from fusecli.fusion.torch_modules import build_module

CONFIGS = [
    FusionConfig(768, 8),
    FusionConfig(64, 4, 33, 100),
    FusionConfig(1, 1),
    FusionConfig(2, 2, 1, 1),
    FusionConfig(5, 1, 3, 1),
    FusionConfig(16, 4, 1, 16, norm=True),
    FusionConfig(96, 3, 1280, 384, residual=True, null_token=True),
    FusionConfig(24, 6, residual=True, norm=True, null_token=True),
    FusionConfig(16, 4, 9, 16, gate=True),
    FusionConfig(10, 8, 7, 5, method="concat", projected=True),
    FusionConfig(300, 8, 320, 384, method="concat", projected=True),
    FusionConfig(12, 8, 7, 5, method="sum", projected=True),
    FusionConfig(12, 8, 7, 5, method="bilinear"),
    FusionConfig(300, 8, 320, 384, method="bilinear", rank=64),
    FusionConfig(24, 4, 10, 6, method="transformer"),
    FusionConfig(64, 8, method="transformer", layers=3, ffn_dim=100),
    FusionConfig(1, 1, 1, 1, method="transformer", layers=1, ffn_dim=1),
]
SEEDS = [0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1]


def torch_weights(config, seed):
    torch.manual_seed(seed)
    module = build_module(config)
    return {name: array.numpy() for name, array in module.state_dict().items()}


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == array.shape
        assert np.array_equal(found[name].view(np.uint32), array.view(np.uint32)), name


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_initial_weights_are_torch_s_bit_for_bit(config, seed):
    found = initial_weights(config, seed)
    assert_same_bits(found, torch_weights(config, seed))
    first = next(name for name in config.parameter_shapes() if "proj" in name)
    assert found[first].any()
    assert not np.array_equal(found[first], initial_weights(config, seed ^ 1)[first])


@settings(max_examples=40, deadline=None)
@given(
    H=st.integers(1, 5),
    d=st.integers(1, 9),
    Di=st.integers(1, 40),
    Dt=st.integers(1, 40),
    norm=st.booleans(),
    seed=st.integers(0, LARGEST_SEED),
)
def test_initial_weights_are_torch_s_for_any_sizes(H, d, Di, Dt, norm, seed):
    config = FusionConfig(H * d, H, Di, Dt, norm=norm)
    assert_same_bits(initial_weights(config, seed), torch_weights(config, seed))


def test_the_layers_of_a_transformer_start_apart():
    weights = initial_weights(FusionConfig(8, 2, method="transformer"), 0)
    for kind in ("self_attn.in_proj_weight", "multihead_attn.out_proj.weight", "linear1.bias"):
        first, second = (weights[f"decoder.layers.{index}.{kind}"] for index in (0, 1))
        assert not np.array_equal(first, second)


def test_a_linear_projection_is_nn_linear_s():
    torch.manual_seed(5)
    plain = torch.nn.Linear(7 + 5, 10)
    found = initial_weights(FusionConfig(10, 8, 7, 5, method="concat", projected=True), 5)
    assert_same_bits(
        found, {f"projection.{k}": p.detach().numpy() for k, p in plain.named_parameters()}
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data(), norm=st.booleans(), seed=st.sampled_from(SEEDS))
def test_a_subset_is_cut_from_the_whole(data, norm, seed):
    config = FusionConfig(12, 3, 7, 5, norm=norm)
    whole = initial_weights(config, seed)
    names = data.draw(st.sets(st.sampled_from(sorted(whole))))
    some = initial_weights(config, seed, dict.fromkeys(names, slice(None)))
    assert_same_bits(some, {name: whole[name] for name in names})


def test_torch_s_own_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    initial_weights(FusionConfig(4, 2), 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_that_both_generators_read_alike_are_taken(seed):
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, -(2**32), 2**32, 2**64])
def test_other_seeds_are_refused(seed):
    with pytest.raises(UsageError, match=f"--seed must be from 0 to 4,294,967,295, found {seed}"):
        initial_weights(FusionConfig(4, 2), seed)
