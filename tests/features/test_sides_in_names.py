"""Names that say a side, in themselves or by what stands before their last part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

MODULE = ("--dim", "16", "--heads", "4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


IMAGE, TEXT = noise(1, 50, 64), noise(1, 9, 48, seed=1)
LAYERS = {"image": noise(13, 1, 50, 64, seed=2), "text": noise(13, 1, 9, 48, seed=3)}


def check(cli: Callable, tensors: dict[str, np.ndarray], *options: str) -> None:
    """One file of these tensors comes to the same as the two arrays."""
    save_file(tensors, "f.safetensors")
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    for files, out in (("f.safetensors f.safetensors", "a.npy"), ("image.npy text.npy", "b.npy")):
        extra = options if out == "a.npy" else ()
        done = cli("fuse", *files.split(), "-o", out, *MODULE, *extra)
        assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))


@pytest.mark.parametrize(
    ("image_key", "text_key"),
    [
        # Of BLIP, Idefics and LLaVA: the tokens of one side, and the last layer of the other.
        ("image_hidden_states", "last_hidden_state"),
        ("last_hidden_state", "text_hidden_states"),
        ("vision_hidden_states", "last_hidden_state"),
        ("last_hidden_state", "question_hidden_states"),
        ("output.image_hidden_states", "output.last_hidden_state"),
        ("output/last_hidden_state", "output/text_hidden_states"),
        ("image_hidden_states", "text_last_hidden_state"),
        ("vision_model.hidden_states", "text_model.last_hidden_state"),
        ("question_encoder.image_hidden_states", "question_encoder.last_hidden_state"),
        # A name that says its side counts more than what stands before it.
        ("language_model.image_embeds", "language_model.x"),
        ("language_model.image_embeds", "language_model.last_hidden_state"),
        ("question_encoder.image_features", "question_encoder.text_features"),
        ("question_encoder/image_features", "question_encoder/text_features"),
        ("image_encoder.image_features", "image_encoder.text_features"),
        ("text_model.visual_states", "text_model.states"),
        ("vision_model.states", "vision_model.caption_states"),
        ("vision_model.x", "vision_model.text_embeds"),
        ("text_decoder.image", "text_decoder.text"),
        ("text_decoder.region_x", "text_decoder.x"),
    ],
)
def test_the_two_sides_of_one_file(image_key: str, text_key: str, cli: Callable) -> None:
    check(cli, {image_key: IMAGE, text_key: TEXT})


@pytest.mark.parametrize(
    ("image_key", "text_key", "layers"),
    [
        ("image_embeds", "last_hidden_state", "text hidden_states"),
        ("image_hidden_states", "last_hidden_state", "text hidden_states"),
        ("image_last_hidden_state", "text_embeds", "image image_hidden_states"),
        ("image_embeds", "text_last_hidden_state", "text text_hidden_states"),
        ("image_embeds", "text_last_hidden_states", "text text_hidden_states"),
        ("vision_model.last_hidden_state", "text_embeds", "image vision_model.hidden_states"),
        ("vision_model.last_hidden_state", "text_embeds", "image vision_model.image_hidden_states"),
        ("image/last_hidden_state", "text/last_hidden_state", "text text/hidden_states"),
        ("image_embeds", "output.last_hidden_state", "text output.hidden_states"),
    ],
)
def test_all_layers_beside_their_own_last_layer_are_not_taken(
    image_key: str, text_key: str, layers: str, cli: Callable
) -> None:
    side, key = layers.split()
    check(cli, {image_key: IMAGE, text_key: TEXT, key: LAYERS[side]})


@pytest.mark.parametrize("key", ["text_hidden_states", "vision_model.hidden_states"])
def test_all_layers_beside_the_last_layer_of_something_else_are_not_read_over(
    key: str, cli: Callable
) -> None:
    side = "text" if key.startswith("text") else "image"
    save_file({key: LAYERS[side], "last_hidden_state": noise(1, 5, 32)}, "f.safetensors")
    done = cli("fuse", "f.safetensors", "f.safetensors", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert f"f.safetensors[{key}]: {list(LAYERS[side].shape)} looks like the hidden" in done.err
