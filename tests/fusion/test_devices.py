"""Every method on every device that this machine has, the CPU among them, in every type."""

import numpy as np
import pytest

from fusecli.fusion.backend.device import devices
from tests.fusion.attention_masks import draw, expected_of
from tests.fusion.configs import CONFIGS, assert_close, build, features, masked
from tests.oracles import each_pair, oracle, random_weights

# Of the largest number of a result. A narrow type rounds every layer's result.
SHARES = {"float32": 2e-5, "bfloat16": 6e-2, "float16": 1e-2}
ATTENDING = ("attention", "attention, switches", "transformer, deep")

pytestmark = pytest.mark.usefixtures("one_thread")
everywhere = pytest.mark.parametrize("device", devices())


@everywhere
@pytest.mark.parametrize("dtype", SHARES)
@pytest.mark.parametrize("direction", ["text", "image"])
@pytest.mark.parametrize("name", CONFIGS)
def test_results_with_masks_and_empty_images(name, device, dtype, direction):
    config = CONFIGS[name]
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 4, 5, 7)
    patches = np.arange(5) < np.array([[5], [2], [0], [3]])
    words = np.arange(7) < np.array([[7], [7], [1], [4]])
    expected = each_pair(oracle(config, weights, direction), image, text, patches, words, direction)
    fusion = build(config, weights, 4, 5, 7, direction, device=device, dtype=dtype, engine="torch")
    assert (fusion.engine, fusion.device) == ("torch", device)
    found = fusion.fuse(masked(image, patches), masked(text, words), patches, words)
    assert found.dtype == np.float32
    assert_close(found, np.broadcast_to(expected, found.shape), SHARES[dtype])


@everywhere
@pytest.mark.parametrize("dtype", SHARES)
@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("shared", [False, True])
def test_attention_masks_and_weights(name, device, dtype, shared):
    config = CONFIGS[name]
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 3, 6, 4)
    image = image[:1] if shared else image
    allowed = draw(3, 4, 6)
    expected = expected_of(config, weights, image, text, allowed, "text")
    fusion = build(config, weights, 3, 6, 4, device=device, dtype=dtype, engine="torch")
    made = []
    found = fusion.fuse(image, text, None, None, made, allowed)
    assert_close(found, expected, SHARES[dtype])
    shares = np.concatenate(made).swapaxes(1, 2).reshape(3, 4, -1, 6) if not shared else None
    if shares is not None:
        seen = allowed.any(-1)
        hidden = np.broadcast_to(~allowed[:, :, None], shares.shape)
        assert (shares[seen][hidden[seen]] == 0).all()
        assert np.abs(shares.sum(-1) - 1).max() < 2e-2


@everywhere
def test_a_stack_in_small_chunks_is_the_stack(device):
    config = CONFIGS["attention"]
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 9, 5, 7)
    fusion = build(config, weights, 9, 5, 7, device=device, engine="torch")
    whole = fusion.fuse(image, text).copy()
    step = fusion.chunk_samples(config.sizes(9, 7, 5), 1)
    assert step == 1
    parts = [fusion.fuse(image[k : k + 1], text[k : k + 1]).copy() for k in range(9)]
    assert_close(np.concatenate(parts), whole, 1e-5)
