"""Which tensor of a file is taken for the features, and which for their mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.axes import read_axes
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.mask_choice import MaskSearch, choose_mask, the_mask_of
from fusecli.features.masks import read_mask
from fusecli.features.select import choose_tensor
from fusecli.features.tensor import InMemory, StoredTensor

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(3, 8)).astype(np.float32)
TEXT = RNG.normal(size=(5, 8)).astype(np.float32)
WORDS = np.array([1, 1, 1, 0, 0])
PATCHES = np.array([1, 1, 0])


def holding(*keys: str) -> FeatureFile:
    """A file of tensors with these names."""
    tensors = {
        key: StoredTensor("a.npz", key, (3, 8), "float32", 96, InMemory(IMAGE)) for key in keys
    }
    return FeatureFile("a.npz", tensors)


def named(key: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor("a.npz", key, shape, "int64", 24, InMemory(np.ones(shape, np.int64)))


def chosen(side: str, *keys: str) -> str | None:
    return choose_tensor(holding(*keys), side, None).key


# --------------------------------------------------------------------------------- features


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("key", ["x", "image", "text", "pixel", "mask"])
def test_only_tensor_needs_no_name(side: str, key: str) -> None:
    assert chosen(side, key) == key


@pytest.mark.parametrize(
    ("side", "keys", "expected"),
    [
        ("image", ["image", "text"], "image"),
        ("text", ["image", "text"], "text"),
        ("image", ["image_features", "text_features"], "image_features"),
        ("text", ["image_embeds", "text_embeds", "logit_scale"], "text_embeds"),
        ("text", ["image_embeddings", "text_embeddings"], "text_embeddings"),
        ("text", ["last_hidden_state", "pooler_output"], "last_hidden_state"),
        ("image", ["last_hidden_state", "pooler_output"], "last_hidden_state"),
        ("text", ["last_hidden_state", "text"], "text"),
        ("image", ["hidden_states", "labels"], "hidden_states"),
        ("image", ["features", "labels"], "features"),
    ],
)
def test_usual_name_is_found(side: str, keys: list[str], expected: str) -> None:
    assert chosen(side, *keys) == expected
    assert chosen(side, *reversed(keys)) == expected


@pytest.mark.parametrize(
    ("side", "keys", "expected"),
    [
        ("text", ["tokens", "attention_mask"], "tokens"),
        ("image", ["x", "image_mask"], "x"),
        ("image", ["x", "text"], "x"),
        ("text", ["x", "image_features", "image_mask", "text_mask"], "x"),
    ],
)
def test_what_is_left_beside_masks_and_the_other_side_is_taken(
    side: str, keys: list[str], expected: str
) -> None:
    assert chosen(side, *keys) == expected


def test_two_usual_names_are_refused_and_both_options_named() -> None:
    with pytest.raises(FeatureFileError) as refused:
        chosen("image", "image_embeds", "image_features", "text")
    assert "a.npz: " in str(refused.value)
    assert "--image-key image_embeds" in str(refused.value)
    assert "--image-key image_features" in str(refused.value)


def test_no_usual_name_is_refused_with_the_keys_there_are() -> None:
    with pytest.raises(FeatureFileError) as refused:
        chosen("text", "b", "a")
    assert "say --text-key" in str(refused.value)
    assert "a [3, 8], b [3, 8]" in str(refused.value)


def test_long_lists_of_keys_are_cut() -> None:
    with pytest.raises(FeatureFileError, match=r"and 38 more$") as refused:
        chosen("text", *(f"k{i}" for i in range(50)))
    assert len(str(refused.value)) < 500


def test_key_said_wins_over_usual_names() -> None:
    file = holding("image", "odd")
    assert choose_tensor(file, "image", "odd").key == "odd"


def test_key_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(FeatureFileError, match=r"no tensor 'imge'.*image \[3, 8\], text \[3, 8\]"):
        choose_tensor(holding("image", "text"), "image", "imge")


def test_key_for_a_file_without_names_says_so(folder: Path) -> None:
    np.save("a.npy", IMAGE)
    with open_features("a.npy") as file, pytest.raises(FeatureFileError, match="without a name"):
        choose_tensor(file, "image", "image")


def test_one_file_serves_both_sides(folder: Path, cli: Callable) -> None:
    save_file({"image": IMAGE, "text": TEXT}, "both.safetensors")
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    assert cli("fuse", "both.safetensors", "both.safetensors", "-o", "a.npy").code == 0
    assert cli("fuse", "image.npy", "text.npy", "-o", "b.npy").code == 0
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))


@pytest.mark.parametrize("write", [np.savez, lambda name, **a: save_file(a, name)])
def test_report_says_which_key_was_read(folder: Path, cli: Callable, write: Callable) -> None:
    name = "both.npz" if write is np.savez else "both.safetensors"
    write(name, image_embeds=IMAGE, text_embeds=TEXT, extra=TEXT)
    done = cli("fuse", name, name, "-o", "out.npy", "--text-key", "extra", "--json")
    inputs = json.loads(done.out)["inputs"]
    assert (inputs["image"]["key"], inputs["text"]["key"]) == ("image_embeds", "extra")


# ------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize(
    ("side", "keys", "shared", "expected"),
    [
        ("text", ["text", "attention_mask"], False, "attention_mask"),
        ("text", ["text", "text_mask"], False, "text_mask"),
        ("text", ["text", "text_mask", "attention_mask"], False, "text_mask"),
        ("image", ["image", "attention_mask"], False, "attention_mask"),
        ("image", ["image", "image_mask"], False, "image_mask"),
        ("image", ["image", "image_attention_mask"], False, "image_attention_mask"),
        ("image", ["image", "text_mask"], False, None),
        ("text", ["text", "image_mask"], False, None),
        ("text", ["text"], False, None),
        ("image", ["image", "text", "attention_mask"], True, None),
        ("text", ["image", "text", "attention_mask"], True, "attention_mask"),
        ("image", ["image", "text", "attention_mask", "image_mask"], True, "image_mask"),
    ],
)
def test_mask_beside_the_features_is_found(
    side: str, keys: list[str], shared: bool, expected: str | None
) -> None:
    masks = {key: named(key, (3,)) for key in keys if "mask" in key}
    file = holding(*keys)
    file.tensors.update(masks)
    found = choose_mask(MaskSearch(file, side, read_axes(side, (3, 8), None, "a.npz"), 1, shared))
    assert (found and found.key) == expected


def test_mask_file_of_one_tensor_needs_no_name() -> None:
    assert the_mask_of(holding("anything"), "image").key == "anything"


@pytest.mark.parametrize("key", ["image_mask", "attention_mask", "mask"])
def test_mask_is_found_in_a_file_of_several(key: str) -> None:
    assert the_mask_of(holding("other", key), "image").key == key


def test_mask_file_without_a_mask_lists_the_keys() -> None:
    with pytest.raises(FeatureFileError, match=r"called a mask: there are a \[3, 8\], b \[3, 8\]"):
        the_mask_of(holding("a", "b"), "text")


@pytest.mark.parametrize("kind", ["?", "u1", "i8", "f4", "f2"])
@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_mask_of_any_plain_type_is_read(kind: str, shape: tuple[int, ...]) -> None:
    values = PATCHES.astype(kind).reshape(shape)
    stored = StoredTensor(
        "m.npy", None, shape, np.dtype(kind).name, values.nbytes, InMemory(values)
    )
    mask = read_mask(stored, read_axes("image", (3, 8), None, "i.npy"), 1)
    assert mask.dtype == bool
    assert mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("axes", "shape", "N", "allowed"),
    [
        ("D", (8,), 1, [(1,), (1, 1)]),
        ("PD", (3, 8), 1, [(3,), (1, 3)]),
        ("ND", (4, 8), 4, [(4,), (4, 1), (1,)]),
        ("NPD", (4, 3, 8), 4, [(3,), (4, 3)]),
        ("DHW", (8, 2, 3), 1, [(6,), (2, 3), (1, 6), (1, 2, 3)]),
        ("NHWD", (4, 2, 3, 8), 4, [(6,), (2, 3), (4, 6), (4, 2, 3)]),
    ],
)
def test_mask_may_have_the_shape_of_the_tokens_and_no_other(
    axes: str, shape: tuple[int, ...], N: int, allowed: list[tuple[int, ...]]
) -> None:
    found = read_axes("image", shape, axes, "i.npy")
    sizes = (1, 2, 3, 4, 6, 8)
    for wanted in chain.from_iterable(product(sizes, repeat=rank) for rank in range(4)):
        values = np.ones(wanted, bool)
        stored = StoredTensor("m.npy", None, wanted, "bool", values.nbytes, InMemory(values))
        if wanted in allowed:
            assert read_mask(stored, found, N).shape[1] == found.tokens
        else:
            with pytest.raises(ShapeError, match="expected"):
                read_mask(stored, found, N)


def test_bare_attention_mask_belongs_to_the_text_of_a_shared_file(
    folder: Path, cli: Callable
) -> None:
    # As many image tokens as words, so that it would fit both.
    image = RNG.normal(size=(5, 8)).astype(np.float32)
    save_file({"image": image, "text": TEXT, "attention_mask": WORDS}, "both.safetensors")
    done = cli("fuse", "both.safetensors", "both.safetensors", "-o", "a.npy", "--json")
    inputs = json.loads(done.out)["inputs"]
    assert inputs["image"]["mask"] is None
    assert inputs["text"]["mask"]["key"] == "attention_mask"
    assert (inputs["text"]["mask"]["real"], inputs["text"]["mask"]["padding"]) == (3, 2)
    fused = np.load("a.npy")
    assert (fused[3:] == 0).all()
    np.save("image.npy", image)
    np.save("text.npy", TEXT)
    cli("fuse", "image.npy", "text.npy", "-o", "b.npy")
    np.testing.assert_allclose(fused[:3], np.load("b.npy")[:3], atol=1e-6)


def test_mask_beside_the_features_is_used_and_said(folder: Path, cli: Callable) -> None:
    np.savez("image.npz", image=IMAGE, image_mask=PATCHES)
    np.save("text.npy", TEXT)
    np.save("cropped.npy", IMAGE[:2])
    done = cli("fuse", "image.npz", "text.npy", "-o", "a.npy")
    assert "image.npz[image_mask] is used as the image mask" in done.err
    cli("fuse", "cropped.npy", "text.npy", "-o", "b.npy")
    np.testing.assert_allclose(np.load("a.npy"), np.load("b.npy"), atol=1e-6)


@pytest.mark.parametrize("side", ["image", "text"])
def test_none_ignores_a_stored_mask(folder: Path, cli: Callable, side: str) -> None:
    mask = PATCHES if side == "image" else WORDS
    np.savez("image.npz", image=IMAGE, **({"image_mask": mask} if side == "image" else {}))
    np.savez("text.npz", text=TEXT, **({"attention_mask": mask} if side == "text" else {}))
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    args = ("fuse", "image.npz", "text.npz")
    ignored = cli(*args, "-o", "a.npy", f"--{side}-mask", "none", "--json")
    assert json.loads(ignored.out)["inputs"][side]["mask"] is None
    assert "is used as" not in ignored.err
    cli("fuse", "image.npy", "text.npy", "-o", "b.npy")
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    cli(*args, "-o", "c.npy")
    assert not np.array_equal(np.load("a.npy"), np.load("c.npy"))


def test_mask_option_wins_over_a_stored_mask(folder: Path, cli: Callable) -> None:
    np.savez("image.npz", image=IMAGE, image_mask=[1, 0, 0])
    np.save("text.npy", TEXT)
    np.save("mask.npy", PATCHES)
    np.save("cropped.npy", IMAGE[:2])
    done = cli("fuse", "image.npz", "text.npy", "--image-mask", "mask.npy", "-o", "a.npy", "--json")
    assert json.loads(done.out)["inputs"]["image"]["mask"]["file"] == "mask.npy"
    cli("fuse", "cropped.npy", "text.npy", "-o", "b.npy")
    np.testing.assert_allclose(np.load("a.npy"), np.load("b.npy"), atol=1e-6)


def test_string_array_beside_the_features_does_no_harm(folder: Path, cli: Callable) -> None:
    np.savez("text.npz", text=TEXT, words=np.array(["a", "dog"]))
    np.save("image.npy", IMAGE)
    assert cli("fuse", "image.npy", "text.npz", "-o", "a.npy").code == 0
    refused = cli("fuse", "image.npy", "text.npz", "--text-key", "words", "-o", "b.npy")
    assert refused.code == 1
    assert refused.err.startswith("error: text.npz[words]: holds strings")


# ------------------------------------------------------------------- parameters of a model


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize(
    "keys",
    [
        ["weight", "bias"],
        ["text.proj.weight", "image.proj.weight"],  # else each is the only one of its side
        ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "bn.weight", "bn.bias"],
        ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight"],
        ["a.weight", "a.bias", "b.weight", "cls_token", "gamma"],  # most of them are
        ["text.proj.weight", "image.proj.weight", "logit_scale"],
        ["weight", "bias", "x"],
        [
            *(f"visual.blocks.{i}.{name}" for i in range(6) for name in ("weight", "bias")),
            *("visual.positional_embedding", "positional_embedding", "text_embedding"),
        ],
    ],
)
def test_parameters_of_a_model_are_refused_as_such(side: str, keys: list[str]) -> None:
    with pytest.raises(FeatureFileError) as caught:
        chosen(side, *keys)
    said = str(caught.value)
    assert said.startswith("a.npz: its tensors look like the parameters of a model: give the ")
    assert f"{side} features that the model makes, or say --{side}-key if" in said
    assert choose_tensor(holding(*keys), side, keys[0]).key == keys[0]


@pytest.mark.parametrize("side", ["image", "text"])
def test_features_beside_parameters_are_found(side: str) -> None:
    assert chosen(side, "weight", "bias", "last_hidden_state") == "last_hidden_state"
    assert chosen(side, "weight") == "weight"  # the only tensor needs no name
