"""Attention maps of a transformer: those of the chosen layer, as torch computes them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fusecli import FuseOptions, FusionConfig, fuse_files, load_module
from fusecli.errors import UsageError
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.weights import write_weights
from fusecli.maps.writer import MapOptions
from tests.oracles import random_weights

DI, DT, D, H, LAYERS = 10, 6, 12, 3, 3
CONFIG = FusionConfig(D, H, DI, DT, method="transformer", layers=LAYERS)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(folder):
    """A folder with a stack of three pairs and the weights of a transformer."""
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((3, 7, DI), np.float32))
    np.save("text.npy", rng.standard_normal((3, 5, DT), np.float32))
    np.save("im.npy", np.arange(7) < np.array([[7], [4], [6]]))
    np.save("tm.npy", np.arange(5) < np.array([[3], [5], [4]]))
    write_weights("w.safetensors", CONFIG, random_weights(CONFIG.parameter_shapes()))


def torchs_weights(layer):
    """What `nn.MultiheadAttention` of one layer says its weights are, `[N, H, T, P]`.

    The whole decoder is torch's, and its inputs are what is not padding, pair by pair.
    """
    module = load_module("w.safetensors").double().eval()
    attention = module.decoder.layers[layer].multihead_attn
    plain = nn.TransformerDecoder(module.decoder.layers[0], LAYERS, module.decoder.norm)
    plain.layers = module.decoder.layers
    inputs = []
    attention.register_forward_pre_hook(lambda _, given: inputs.append(given[:3]))
    image, text, patches, words = map(np.load, ("image.npy", "text.npy", "im.npy", "tm.npy"))
    made = np.zeros((3, H, 5, 7))
    with torch.inference_mode():
        for k in range(3):
            x = module.text_proj(torch.from_numpy(text[k][words[k]]).double())[None]
            y = module.image_proj(torch.from_numpy(image[k][patches[k]]).double())[None]
            plain(x, y)
            query, key, value = inputs.pop()
            _, weights = attention.forward(
                query, key, value, need_weights=True, average_attn_weights=False
            )
            made[np.ix_([k], range(H), np.flatnonzero(words[k]), np.flatnonzero(patches[k]))] = (
                weights.numpy()
            )
    return made


def options(maps, **more):
    more = {"weights": "w.safetensors", "image_mask": "im.npy", "text_mask": "tm.npy"} | more
    return FuseOptions("image.npy", "text.npy", "out.npy", maps=maps, force=True, **more)


@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_the_map_is_what_torch_says_of_that_layer(layer):
    wanted = torchs_weights(2 if layer is None else layer)
    assert np.abs(wanted[0, 0, :3] - 1 / 7).max() > 0.2  # far from uniform
    fuse_files(options(MapOptions()))
    result = Path("out.npy").read_bytes()
    for memory in (None, 1):
        report = fuse_files(
            options(MapOptions("map.npy", per_head=True, layer=layer), max_memory=memory)
        )
        np.testing.assert_allclose(np.load("map.npy"), wanted, atol=2e-6)
        assert report.maps["layer"] == (2 if layer is None else layer)
        assert report.maps["axes"] == "NHTP"
    fuse_files(options(MapOptions("map.npy", layer=layer)))
    np.testing.assert_allclose(np.load("map.npy"), wanted.mean(1), atol=2e-6)
    assert Path("out.npy").read_bytes() == result
    said = "the attention shown is that of layer 2, the last of 3 (counted from 0): --layer chooses"
    assert any(said in note for note in report.notes) == (layer is None)


def test_of_an_attention_mask_too():
    allowed = np.random.default_rng(1).random((5, 7)) < 0.6
    allowed[:, 0] = True
    np.save("am.npy", allowed)
    fuse_files(options(MapOptions("map.npy", layer=0), attention_mask="am.npy"))
    found, words, patches = map(np.load, ("map.npy", "tm.npy", "im.npy"))
    seen = words[:, :, None] & patches[:, None] & allowed
    assert (found[~seen] == 0).all()
    assert (found[seen] > 0).all()
    np.testing.assert_allclose(found.sum(-1)[words], 1, atol=1e-5)


@pytest.mark.slow
def test_the_picture_and_the_terminal_say_which_layer(cli):
    shown = []
    fuse_files(options(MapOptions(show=True, layer=1, sample=1)), show=shown.append)
    assert shown[0].title == "Attention of text.npy to image.npy, sample 1 of 3, layer 1 (0 to 2)"
    np.testing.assert_allclose(
        shown[0].times[:, :4], torchs_weights(1).mean(1)[1, :, :4] * 4, rtol=1e-5
    )
    pair = ("fuse", "image.npy", "text.npy", "-o", "o.npy", "--weights", "w.safetensors")
    done = cli(*pair, "--plot", "p.svg", "--show", "--report", "r.json")
    assert done.code == 0, done.err
    assert os.path.getsize("p.svg") > 10_000
    assert "layer 2 (0 to 2)" in done.err
    assert "note: the attention shown is that of layer 2" in done.err
    assert json.loads(Path("r.json").read_text())["attention"] is None  # of no single layer


def test_a_transformer_of_one_layer_needs_no_note(cli):
    config = FusionConfig(D, H, DI, DT, method="transformer", layers=1)
    write_weights("one.safetensors", config, random_weights(config.parameter_shapes()))
    report = fuse_files(options(MapOptions("m.npy"), weights="one.safetensors"))
    assert not any("layer" in note for note in report.notes)
    assert report.maps["layer"] == 0


@pytest.mark.parametrize(
    ("maps", "module", "says"),
    [
        (
            MapOptions("m.npy", layer=3),
            {},
            "--layer 3: the module has 3 layers, counted from 0",
        ),
        (MapOptions("m.npy", layer=-1), {}, "--layer -1: the module has 3 layers"),
        (MapOptions(layer=1), {}, "--layer goes with --attention FILE, --plot FILE or --show"),
        (
            MapOptions("m.npy", layer=0),
            {"weights": None, "switches": ModuleOptions(heads=2)},
            "--layer belongs to --method transformer; attention has no layers",
        ),
    ],
    ids=str,
)
def test_a_layer_that_is_not_there_is_refused(maps, module, says):
    before = sorted(os.listdir())
    with pytest.raises(UsageError, match=says):
        fuse_files(options(maps, **module))
    assert sorted(os.listdir()) == before
