"""The transformer against numbers that others published, and what it must not do."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fusecli import FuseOptions, FusionConfig, fuse_files, load_module
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.torch_modules import build_module
from fusecli.fusion.weights import write_weights

# facebookresearch/multimodal, tests/modules/layers/test_transformer.py at 0d77383:
# TestTransformerDecoderLayer.test_forward_with_cross_attn and TestTransformerDecoder
# .test_forward_with_cross_attention, norm_first=True. Every weight and bias is 1, except that
# norms have the layer's factor times [0, 1, 2, 3] as weight and as bias.
HIDDEN = [[1.0, 2, 3, 4], [4, 2, 0, 2]]
ENCODER_HIDDEN = [[5.0, 6, 7, 8], [8, 9, 11, 12], [2, 1, 0, 2], [0, 0, 4, 4]]
PUBLISHED = [
    # factor of each layer, what the last layer gives
    (
        [1],
        [[236.8329, 237.8329, 238.8329, 239.8329], [225.2317, 223.2317, 221.2317, 223.2317]],
    ),
    (
        [0, 1],
        [[409.8329, 410.8329, 411.8329, 412.8329], [398.2318, 396.2318, 394.2318, 396.2318]],
    ),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("factors", "published"), PUBLISHED)
def test_published_values_of_pre_norm_decoder_layers(factors, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FusionConfig(4, 1, method="transformer", layers=len(factors), ffn_dim=2)
    weights = {
        name: np.ones(shape, np.float32) for name, shape in config.parameter_shapes().items()
    }
    for side in ("text", "image"):  # what was published has no projection in front
        weights |= {f"{side}_proj.weight": np.eye(4), f"{side}_proj.bias": np.zeros(4)}
    for index, factor in enumerate(factors):
        for norm in ("norm1", "norm2", "norm3"):
            for part in ("weight", "bias"):
                weights[f"decoder.layers.{index}.{norm}.{part}"] = factor * np.arange(4.0)
    weights["decoder.norm.bias"] = np.zeros(4)
    write_weights("w.safetensors", config, weights)

    module, seen = load_module("w.safetensors").eval(), []
    module.decoder.norm.register_forward_pre_hook(lambda norm, given: seen.append(given[0]))
    module(torch.tensor(ENCODER_HIDDEN), torch.tensor(HIDDEN))
    np.testing.assert_allclose(seen[0][0].detach(), published, rtol=1e-5)

    np.save("image.npy", ENCODER_HIDDEN)
    np.save("text.npy", HIDDEN)
    fuse_files(FuseOptions("image.npy", "text.npy", "out.npy", weights="w.safetensors"))
    # And behind the last norm, which what was published does not have.
    expected = F.layer_norm(torch.tensor(published), (4,))
    np.testing.assert_allclose(np.load("out.npy"), expected, atol=1e-4)


def test_no_mask_is_causal():
    # Turning the text's tokens round turns the result round, which a causal mask would not.
    module = build_module(FusionConfig(12, 3, method="transformer")).eval()
    image, text = torch.randn(5, 12), torch.randn(6, 12)
    turned = module(image, text.flip(0)).flip(0)
    torch.testing.assert_close(turned, module(image, text), rtol=0, atol=1e-5)
    # And every token sees every other.
    changed = text.clone()
    changed[-1] += 1
    assert ((module(image, changed) - module(image, text)).abs().amax(1) > 1e-6).all()


def test_a_layer_uses_the_image():
    module = build_module(FusionConfig(12, 3, method="transformer")).eval()
    image, text = torch.randn(5, 12), torch.randn(6, 12)
    apart = module(image + torch.randn(5, 12), text) - module(image, text)
    assert (apart.abs().amax(1) > 1e-4).all()
    order = module(image.flip(0), text) - module(image, text)
    assert order.abs().max() < 1e-5


def test_building_draws_what_the_initial_weights_are():
    config = FusionConfig(24, 4, 10, 6, method="transformer", layers=3, ffn_dim=17)
    torch.manual_seed(7)
    state = build_module(config).state_dict()
    drawn = initial_weights(config, 7)
    assert list(state) == list(config.parameter_shapes())
    for name, array in drawn.items():
        assert np.array_equal(state[name].numpy(), array), name


def test_there_is_no_dropout():
    module = build_module(FusionConfig(12, 3, method="transformer")).train()
    image, text = torch.randn(5, 12), torch.randn(6, 12)
    assert torch.equal(module(image, text), module(image, text))
