"""Masks under the names and in the conventions that are in use, and what else lies in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file as save_torch

from fusecli.features.mask_names import mask_meaning

RNG = np.random.default_rng(0)
STACK = RNG.normal(size=(2, 6, 48)).astype(np.float32)
OTHER = RNG.normal(size=(2, 4, 48)).astype(np.float32)
KEEP = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], np.int64)
COUNTS = KEEP.sum(axis=1)
ADDED = np.where(KEEP == 1, 0, -1e9).astype(np.float32)


def masked(side: str, cli: Callable, name: str, *options: str) -> np.ndarray:
    """The result with a file of features, and a mask, on one side."""
    other = "text" if side == "image" else "image"
    np.save(f"{other}.npy", OTHER)
    files = [name, "text.npy"] if side == "image" else ["image.npy", name]
    done = cli("fuse", *files, "-o", "out.npy", "--force", *options)
    assert done.code == 0, done.err
    return np.load("out.npy")


def expected(side: str, cli: Callable) -> np.ndarray:
    np.save("keep.npy", KEEP)
    np.save("features.npy", STACK)
    return masked(side, cli, "features.npy", f"--{side}-mask", "keep.npy")


NAMED = {
    "mask": KEEP,
    "padding_mask": KEEP == 0,
    "key_padding_mask": KEEP == 0,
    "src_key_padding_mask": KEEP == 0,
    "lengths": COUNTS,
    "attention_mask": ADDED,
}
IMAGES = {
    "pixel_attention_mask": KEEP,
    "image_atts": KEEP,
    "region_mask": KEEP == 1,
    "num_boxes": COUNTS,
    "num_regions": COUNTS[:, None],
}
TEXTS = {"text_attention_mask": KEEP, "text_padding_mask": KEEP == 0, "num_words": COUNTS}


@pytest.mark.parametrize(
    ("side", "name"),
    [
        *(("image", name) for name in [*NAMED, *IMAGES]),
        *(("text", name) for name in [*NAMED, *TEXTS]),
    ],
)
def test_mask_beside_the_features_is_used_by_its_name(folder, cli, side, name) -> None:
    mask = {**NAMED, **IMAGES, **TEXTS}[name]
    wanted = expected(side, cli)
    np.savez("a.npz", last_hidden_state=STACK, **{name: mask})
    np.testing.assert_array_equal(masked(side, cli, "a.npz"), wanted)


STYLES = {
    "keep": KEEP,
    "padding": 1 - KEEP,
    "additive": ADDED,
    "lengths": COUNTS,
}


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("style", STYLES)
def test_mask_of_every_style_is_read_when_told(folder, cli, side, style) -> None:
    wanted = expected(side, cli)
    np.save("mask.npy", STYLES[style])
    options = (f"--{side}-mask", "mask.npy", "--mask-style", style)
    np.testing.assert_array_equal(masked(side, cli, "features.npy", *options), wanted)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("low", [-1e4, -65504.0, float(np.finfo(np.float32).min), -np.inf])
@pytest.mark.parametrize("shape", [(2, 6), (2, 1, 1, 6)])
def test_additive_mask_is_known_by_its_numbers(folder, cli, side, low, shape) -> None:
    wanted = expected(side, cli)
    np.save("mask.npy", np.where(KEEP == 1, 0, low).astype(np.float32).reshape(shape))
    found = masked(side, cli, "features.npy", f"--{side}-mask", "mask.npy")
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("side", ["image", "text"])
def test_additive_mask_of_zeros_masks_nothing(folder, cli, side) -> None:
    np.save("features.npy", STACK)
    np.save("mask.npy", np.zeros((2, 6), np.float32))
    found = masked(side, cli, "features.npy", f"--{side}-mask", "mask.npy")
    np.testing.assert_array_equal(found, masked(side, cli, "features.npy"))
    np.save("mask.npy", np.zeros((2, 6), np.int64))  # of whole numbers, 0 is padding
    files = ("image.npy", "features.npy") if side == "text" else ("features.npy", "text.npy")
    assert cli("fuse", *files, "-o", "b.npy", f"--{side}-mask", "mask.npy").code == 1


def test_tensor_like_a_mask_with_an_unclear_name_is_refused(folder, cli) -> None:
    np.savez("a.npz", last_hidden_state=STACK, odd=KEEP == 1)
    np.save("text.npy", OTHER)
    done = cli("fuse", "a.npz", "text.npy", "-o", "out.npy")
    assert done.code == 1
    assert "a.npz[odd]" in done.err
    assert "--mask-style padding" in done.err
    wanted = expected("image", cli)
    found = masked("image", cli, "a.npz", "--mask-style", "keep")
    np.testing.assert_array_equal(found, wanted)
    ignored = masked("image", cli, "a.npz", "--image-mask", "none")
    np.testing.assert_array_equal(ignored, masked("image", cli, "features.npy"))


@pytest.mark.parametrize("name", ["token_type_ids", "labels", "special_tokens_mask"])
def test_tensors_that_are_no_masks_are_named_as_not_used(folder, cli, name) -> None:
    np.savez("a.npz", last_hidden_state=STACK, **{name: KEEP})
    np.save("image.npy", OTHER)
    done = cli("fuse", "image.npy", "a.npz", "-o", "out.npy")
    assert done.code == 0
    assert f"not used: {name} [2, 6]" in done.err


def test_count_that_is_too_large_is_refused(folder, cli) -> None:
    np.savez("a.npz", features=STACK, num_boxes=[6, 7])
    np.save("text.npy", OTHER)
    done = cli("fuse", "a.npz", "text.npy", "-o", "out.npy")
    assert (done.code, "sample 1 has 7 real image tokens" in done.err) == (1, True)


@pytest.mark.parametrize("name", ["count", "counts", "features.count"])
def test_count_beside_one_sample_may_count_samples_and_is_named(folder, cli, name) -> None:
    np.save("features.npy", STACK[0])
    np.save("text.npy", OTHER[0])
    done = cli("fuse", "features.npy", "text.npy", "-o", "wanted.npy")
    assert done.code == 0
    np.savez("a.npz", features=STACK[0], **{name: np.array([3])})
    done = cli("fuse", "a.npz", "text.npy", "-o", "out.npy")
    assert done.code == 0, done.err
    assert f"not used: {name} [1]" in done.err
    np.testing.assert_array_equal(np.load("out.npy"), np.load("wanted.npy"))
    # One that is given as a mask is a mask.
    said = cli("fuse", "a.npz", "text.npy", "-o", "b.npy", "--image-mask", f"a.npz:{name}")
    assert said.code == 0, said.err
    assert (np.load("b.npy") != np.load("out.npy")).any()


@pytest.mark.parametrize("name", ["count", "counts"])
def test_count_beside_a_stack_counts_tokens(folder, cli, name) -> None:
    wanted = expected("image", cli)
    np.savez("a.npz", features=STACK, **{name: COUNTS})
    np.testing.assert_array_equal(masked("image", cli, "a.npz"), wanted)


@pytest.mark.parametrize("name", ["logits", "attn_mask", "image", "num", "mask_token"])
def test_other_names_are_no_masks(name: str) -> None:
    assert mask_meaning(name) is None


# --------------------------------------------------------------------------------- features


@pytest.mark.parametrize("order", [1, -1])
def test_tokens_win_over_a_pooled_vector_and_every_key_is_told(folder, cli, order) -> None:
    tokens = RNG.normal(size=(1, 50, 48)).astype(np.float32)
    tensors = {"image_embeds": tokens[:, 0], "last_hidden_state": tokens}
    np.savez("a.npz", **dict(list(tensors.items())[::order]))
    np.save("text.npy", OTHER[:1])
    done = cli("fuse", "a.npz", "text.npy", "-o", "out.npy", "--json")
    assert json.loads(done.out)["inputs"]["image"]["key"] == "last_hidden_state"
    assert (
        "a.npz: last_hidden_state [1, 50, 48] is the image; not used: image_embeds [1, 48]"
        in done.err
    )


@pytest.mark.parametrize(("side", "key"), [("image", "text_features"), ("text", "image_embeds")])
def test_file_of_the_other_side_is_refused(folder, cli, side, key) -> None:
    np.savez("a.npz", **{key: STACK})
    np.save("b.npy", OTHER)
    files = ("a.npz", "b.npy") if side == "image" else ("b.npy", "a.npz")
    done = cli("fuse", *files, "-o", "out.npy")
    assert done.code == 1
    assert f"called {key}, and it is given as the {side}" in done.err
    assert cli("fuse", *files, "-o", "out.npy", f"--{side}-key", key).code == 0


SCALES = {
    "one number": np.float32(0.5),
    "one a channel": RNG.uniform(0.1, 1, 48).astype(np.float32),
    "one a row": RNG.uniform(0.1, 1, (2, 6)).astype(np.float32),
    "one a row, kept": RNG.uniform(0.1, 1, (2, 6, 1)).astype(np.float32),
    "one a sample": RNG.uniform(0.1, 1, 2).astype(np.float32),
}


@pytest.mark.parametrize("kind", ["i1", "u1"])
@pytest.mark.parametrize("scale", SCALES)
def test_quantized_features_are_dequantized_and_told(folder, cli, scale, kind) -> None:
    whole = RNG.integers(0, 100, (2, 6, 48)).astype(kind)
    factor = SCALES[scale]
    real = {
        "one a row": factor[..., None] if factor.ndim else factor,
        "one a sample": factor.reshape(-1, 1, 1),
    }.get(scale, factor)
    np.save("features.npy", ((whole.astype(np.float32) - 10) * real).astype(np.float32))
    wanted = masked("image", cli, "features.npy")
    np.savez("a.npz", features=whole, features_scale=factor, features_zero_point=np.int64(10))
    np.testing.assert_allclose(masked("image", cli, "a.npz"), wanted, atol=1e-5)
    np.testing.assert_allclose(
        masked("image", cli, "a.npz", "--max-memory", "1K"), wanted, atol=1e-5
    )
    done = cli("fuse", "a.npz", "text.npy", "-o", "c.npy", "--json")
    notes = json.loads(done.out)["notes"]
    assert any("dequantized with features_scale and features_zero_point" in n for n in notes)


def test_whole_numbers_are_refused_unless_an_option_allows_them(
    folder: Path, cli: Callable
) -> None:
    np.save("image.npy", OTHER[0])
    np.save("input_ids.npy", RNG.integers(0, 30000, (8, 64)))
    done = cli("fuse", "image.npy", "input_ids.npy", "-o", "out.npy")
    assert done.code == 1
    assert "last_hidden_state" in done.err
    assert "--allow-integers" in done.err
    args = ("fuse", "image.npy", "input_ids.npy", "-o", "out.npy", "--allow-integers")
    assert cli(*args).code == 0
    np.save("flags.npy", RNG.integers(0, 2, (8, 64)).astype(bool))
    assert cli("fuse", "image.npy", "flags.npy", "-o", "b.npy").code == 0


@pytest.mark.parametrize("bits", [torch.uint16, torch.int16])
def test_bits_of_bfloat16_are_not_whole_numbers(folder, cli, bits) -> None:
    save_torch({"text": torch.ones(4, 48, dtype=torch.bfloat16).view(bits)}, "a.safetensors")
    np.save("image.npy", OTHER[0])
    done = cli("fuse", "image.npy", "a.safetensors", "-o", "out.npy")
    assert (done.code, "bfloat16" in done.err) == (1, True)


# ------------------------------------------------------------------- further names and numbers

FURTHER = {
    "vision_attention_mask": KEEP,
    "attention_masks": KEEP,
    "tgt_key_padding_mask": KEEP == 0,
    "memory_key_padding_mask": KEEP == 0,
    "non_pad_mask": KEEP,
    "not_padding_mask": KEEP == 1,
    "keypaddingmask": KEEP == 0,
    "invalid_mask": KEEP == 0,
    "ignore_mask": 1 - KEEP,
    "is_padding": KEEP == 0,
    "image_pad": KEEP == 0,
    "image_lengths": COUNTS,
    "seq_len": COUNTS,
    "valid_lengths": COUNTS.astype(np.float32),
    "num_patches": COUNTS[:, None],
    "attention_bias": ADDED,
    "extended_attention_mask": np.maximum(ADDED, -6e4).astype(np.float16)[:, None, None],
    "additive": np.where(KEEP == 1, 0, -(10**9)),
    "image_mask": (255 * KEEP).astype(np.uint8),
    "mask": KEEP.astype(np.float32),
}


@pytest.mark.parametrize("name", FURTHER)
def test_masks_of_other_libraries_are_used_by_name_or_by_their_numbers(folder, cli, name) -> None:
    wanted = expected("image", cli)
    np.savez("a.npz", last_hidden_state=STACK, **{name: FURTHER[name]})
    np.testing.assert_array_equal(masked("image", cli, "a.npz"), wanted)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("key_padding_mask", "is used as the image mask (1 is padding)"),
        ("num_boxes", "is used as the image mask (counts of real tokens)"),
        ("mask", "is used as the image mask\n"),
    ],
)
def test_a_note_says_how_a_mask_is_read(folder, cli, name, says) -> None:
    np.savez("a.npz", last_hidden_state=STACK, **{name: {**NAMED, **IMAGES}[name]})
    np.save("text.npy", OTHER)
    assert says in cli("fuse", "a.npz", "text.npy", "-o", "out.npy").err


@pytest.mark.parametrize("value", [KEEP.astype(np.float32), (255 * KEEP).astype(np.uint8)])
@pytest.mark.parametrize("name", ["odd", "masked", "drop_mask", "valid"])
def test_masks_of_other_types_with_unclear_names_are_refused(folder, cli, name, value) -> None:
    np.savez("a.npz", last_hidden_state=STACK, **{name: value})
    np.save("text.npy", OTHER)
    done = cli("fuse", "a.npz", "text.npy", "-o", "out.npy")
    assert (done.code, "its name does not say what they mean" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_images", np.array([1, 1])),
        ("num_captions", np.array([5, 5])),
        ("max_length", np.array([2, 2])),
        ("focal_length", np.array([3.5, 3.5], np.float32)),
        ("cu_seqlens", np.array([0, 6])),
        ("scores", np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(2, 6)),
    ],
)
def test_other_counts_and_numbers_are_no_masks_and_are_named(folder, cli, name, value) -> None:
    np.save("features.npy", STACK)
    np.savez("a.npz", last_hidden_state=STACK, **{name: value})
    found = masked("image", cli, "a.npz")
    np.testing.assert_array_equal(found, masked("image", cli, "features.npy"))
    done = cli("fuse", "a.npz", "text.npy", "-o", "b.npy")
    assert f"not used: {name} {list(value.shape)}" in done.err


@pytest.mark.parametrize("shape", [(6, 2), (2, 6, 1), (2, 1, 6)])
def test_a_tensor_named_a_mask_with_other_axes_is_refused_and_not_ignored(
    folder, cli, shape
) -> None:
    np.savez("a.npz", last_hidden_state=STACK, padding_mask=(KEEP == 0).reshape(shape))
    np.save("text.npy", OTHER)
    done = cli("fuse", "a.npz", "text.npy", "-o", "out.npy")
    assert done.code == 1
    assert f"a.npz[padding_mask]: the image mask has shape {list(shape)}, expected" in done.err


# ----------------------------------------------------------------------- names of either side


@pytest.mark.parametrize(
    ("keys", "image", "text"),
    [
        (("vision_feats", "txt_feats"), "vision_feats", "txt_feats"),
        (("visual_embeds", "caption_embeds"), "visual_embeds", "caption_embeds"),
        (
            ("vision_model.last_hidden_state", "text_model.last_hidden_state"),
            "vision_model.last_hidden_state",
            "text_model.last_hidden_state",
        ),
        (("img_features", "embeddings"), "img_features", "embeddings"),
    ],
)
def test_the_side_in_a_name_chooses_the_tensor_of_a_shared_file(
    folder, cli, keys, image, text
) -> None:
    np.savez("both.npz", **{keys[0]: STACK, keys[1]: OTHER})
    done = cli("fuse", "both.npz", "both.npz", "-o", "out.npy", "--json")
    inputs = json.loads(done.out)["inputs"]
    assert (inputs["image"]["key"], inputs["text"]["key"]) == (image, text)


@pytest.mark.parametrize(
    ("side", "key"),
    [("image", "text"), ("text", "image"), ("image", "caption_feats"), ("text", "pixel_tokens")],
)
def test_a_name_of_the_other_side_is_diagnosed(folder, cli, side, key) -> None:
    np.savez("a.npz", **{key: STACK})
    np.save("b.npy", OTHER)
    files = ("a.npz", "b.npy") if side == "image" else ("b.npy", "a.npz")
    done = cli("fuse", *files, "-o", "out.npy", "--json")
    assert done.code == 0
    codes = [found["code"] for found in json.loads(done.out)["diagnoses"]]
    assert f"{side}-misnamed" in codes
    assert f"called {key}, and it is used as the {side}" in done.err
    assert cli("fuse", *files, "-o", "b.out.npy", "--strict").code == 1
    said = cli("fuse", *files, "-o", "c.npy", "--json", f"--{side}-key", key)
    assert not any(d["code"].endswith("-misnamed") for d in json.loads(said.out)["diagnoses"])
