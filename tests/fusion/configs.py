"""A fusion of every method, and what tests need to build and feed one."""

import numpy as np
import pytest

from fusecli import FusionConfig
from fusecli.errors import UsageError
from fusecli.fusion.base import Computing
from fusecli.fusion.build import build_fusion
from fusecli.fusion.literals import SIDES
from fusecli.fusion.settings import Sizes

DI, DT, D, H = 10, 6, 12, 3


CONFIGS = {
    "attention": FusionConfig(D, H, DI, DT),
    "attention, switches": FusionConfig(D, H, DI, DT, residual=True, norm=True),
    "gate": FusionConfig(D, H, D, D, gate=True),
    "concat": FusionConfig(DT + DI, 8, DI, DT, method="concat"),
    "concat, projected": FusionConfig(D, 8, DI, DT, method="concat", projected=True),
    "sum": FusionConfig(D, method="sum", alpha=0.3),
    "sum, projected": FusionConfig(D, 8, DI, DT, method="sum", projected=True, alpha=0.8),
    "bilinear": FusionConfig(D, 8, DI, DT, method="bilinear"),
    "bilinear, low rank": FusionConfig(D, 8, DI, DT, method="bilinear", rank=5),
    "transformer": FusionConfig(D, H, DI, DT, method="transformer"),
    "transformer, deep": FusionConfig(D, 2, DI, DT, method="transformer", layers=3, ffn_dim=7),
}


SHAPES = [(1, 1, 1), (1, 5, 4), (3, 1, 4), (3, 6, 1), (4, 5, 7)]  # n, P, T


directions = pytest.mark.parametrize("direction", SIDES)


def takes(config, direction):
    """Whether this side's tokens can be the query side; a method may fuse into the text only."""
    try:
        config.check_direction(direction)
    except UsageError:
        return False
    return True


CASES = {
    f"{direction}-{name}": (config, direction)
    for direction in SIDES
    for name, config in CONFIGS.items()
    if takes(config, direction)
}


cases = pytest.mark.parametrize(("config", "direction"), CASES.values(), ids=CASES)


def engines_of(config):
    return ["torch"] if config.method == "transformer" else ["numpy", "torch"]


def build(config, weights, n, P, T, direction="text", **options):
    c = config
    sizes = Sizes(
        n, T, P, c.text_dim, c.image_dim, c.embed_dim, c.num_heads, c.null_token, c.residual
    )

    def load(rows):
        return {name: weights[name][part] for name, part in rows.items()}

    options = {"device": "cpu"} | options
    return build_fusion(config, load, sizes, Computing(direction, **options))


def features(config, n, P, T, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, P, config.image_dim), np.float32)
    return image, rng.standard_normal((n, T, config.text_dim), np.float32)


def masked(array, mask):
    """Padding is zero where it reaches a fusion: `TokenReader` sees to it."""
    return np.where(mask[..., None], array, np.float32(0))


def assert_close(found, expected, share=1e-5):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= share * max(1.0, np.abs(expected).max())
