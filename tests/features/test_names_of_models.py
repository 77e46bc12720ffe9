"""What encoders and their users store: which tensor is taken, and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fusecli.errors import FeatureFileError
from fusecli.features.file import open_features
from fusecli.features.select import choose_tensor

RNG = np.random.default_rng(0)
N, P, T = 3, 6, 7
KEEP = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
WORDS = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


IMAGES, TEXTS = noise(N, P, 48), noise(N, T, 32)


def fused(cli: Callable, image: str, text: str, *options: str) -> tuple[np.ndarray, str]:
    """The result, and what was said."""
    done = cli("fuse", image, text, "-o", "out.npy", "--force", *options)
    assert done.code == 0, done.err
    return np.load("out.npy"), done.err


def of_arrays(cli: Callable, image: np.ndarray, text: np.ndarray, *options: str) -> np.ndarray:
    np.save("plain_image.npy", image)
    np.save("plain_text.npy", text)
    return fused(cli, "plain_image.npy", "plain_text.npy", *options)[0]


def test_the_patches_of_dinov2_are_the_image(cli: Callable) -> None:
    patches = noise(2, 16, 48)
    torch.save(
        {
            "x_norm_clstoken": torch.randn(2, 48),
            "x_norm_regtokens": torch.randn(2, 4, 48),
            "x_norm_patchtokens": torch.from_numpy(patches),
            "x_prenorm": torch.randn(2, 21, 48),
            # True where training hid a patch; it masks nothing here, whatever it is called.
            "masks": torch.arange(32).reshape(2, 16) % 3 == 0,
        },
        "image.pt",
    )
    np.save("text.npy", TEXTS[:2])
    refused = cli("fuse", "image.pt", "text.npy", "-o", "out.npy")
    assert refused.code == 1
    assert "image.pt[masks]: has the shape and the numbers of a mask" in refused.err
    result, said = fused(cli, "image.pt", "text.npy", "--image-mask", "none")
    assert np.array_equal(result, of_arrays(cli, patches, TEXTS[:2]))
    assert "x_norm_patchtokens [2, 16, 48] is the image; not used: masks [2, 16]" in said


def test_the_tokens_of_sentence_transformers_win_over_the_sentence(cli: Callable) -> None:
    tensors = {
        "input_ids": np.arange(N * T).reshape(N, T),
        "attention_mask": WORDS,
        "token_embeddings": TEXTS,
        "sentence_embedding": noise(N, 32),
    }
    save_file(tensors, "text.safetensors")
    np.save("image.npy", IMAGES)
    np.save("words.npy", WORDS)
    result, said = fused(cli, "image.npy", "text.safetensors")
    wanted = of_arrays(cli, IMAGES, TEXTS, "--text-mask", "words.npy")
    assert np.array_equal(result, wanted)
    assert not result[1, :2].any()
    assert result[1, 2:].all()
    assert "not used: input_ids [3, 7], sentence_embedding [3, 32]" in said


@pytest.mark.parametrize(
    "name",
    [
        *("num_bbox", "boxes_num", "box_counts", "region_counts", "obj_num", "nboxes", "n_tok"),
        *("counts", "count"),
    ],
)
def test_counts_under_the_names_of_detectors(name: str, cli: Callable) -> None:
    save_file({"image_features": IMAGES, name: KEEP.sum(axis=1)}, "image.safetensors")
    np.save("text.npy", TEXTS)
    np.save("keep.npy", KEEP)
    result, _ = fused(cli, "image.safetensors", "text.npy")
    wanted = of_arrays(cli, IMAGES, TEXTS, "--image-mask", "keep.npy")
    assert np.array_equal(result, wanted)


@pytest.mark.parametrize(
    ("name", "mask"),
    [("mask_text", WORDS), ("attention_mask_text", WORDS), ("padding_mask_txt", 1 - WORDS)],
)
def test_the_side_may_stand_at_the_end_of_a_masks_name(
    name: str, mask: np.ndarray, cli: Callable
) -> None:
    save_file({"last_hidden_state": TEXTS, name: mask}, "text.safetensors")
    np.save("image.npy", IMAGES)
    np.save("words.npy", WORDS)
    result, _ = fused(cli, "image.npy", "text.safetensors")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--text-mask", "words.npy"))


@pytest.mark.parametrize("name", ["mask", "image_mask", "patch_mask", "pixel_mask"])
def test_a_mask_that_counts_a_class_token_more_is_refused_and_the_advice_works(
    name: str, cli: Callable
) -> None:
    longer = np.concatenate([np.ones((N, 1), np.int64), KEEP], axis=1)
    save_file({"image_features": IMAGES, name: longer}, "image.safetensors")
    np.save("text.npy", TEXTS)
    refused = cli("fuse", "image.safetensors", "text.npy", "-o", "out.npy")
    assert refused.code == 1
    assert not Path("out.npy").exists()
    assert f"image.safetensors[{name}]: the image mask has shape [3, 7], expected" in refused.err
    assert "cut them off (mask[:, 1:])" in refused.err
    save_file({"image_features": IMAGES, name: longer[:, 1:].copy()}, "image.safetensors")
    np.save("keep.npy", KEEP)
    result, _ = fused(cli, "image.safetensors", "text.npy")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--image-mask", "keep.npy"))


def test_a_mask_of_the_pixels_is_named_as_not_used(cli: Callable) -> None:
    pixels = np.ones((N, 64, 64), np.int64)
    save_file({"image_features": IMAGES, "pixel_mask": pixels}, "image.safetensors")
    np.save("text.npy", TEXTS)
    result, said = fused(cli, "image.safetensors", "text.npy")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS))
    assert "not used: pixel_mask [3, 64, 64]" in said


def test_a_mask_option_takes_a_key_and_names_the_other_tensors(cli: Callable) -> None:
    np.save("image.npy", IMAGES)
    np.save("text.npy", TEXTS)
    np.savez("masks.npz", a=WORDS, b=1 - WORDS)
    result, said = fused(cli, "image.npy", "text.npy", "--text-mask", "masks.npz:a")
    np.save("words.npy", WORDS)
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--text-mask", "words.npy"))
    assert "note: masks.npz: a [3, 7] is the text mask; not used: b [3, 7]" in said
    options = ("--text-mask", "masks.npz:b", "--mask-style", "padding")
    assert np.array_equal(fused(cli, "image.npy", "text.npy", *options)[0], result)
    protected = cli(
        *("fuse", "image.npy", "text.npy", "-o", "masks.npz", "--force"),
        *("--text-mask", "masks.npz:a"),
    )
    assert protected.code == 1
    assert "masks.npz: is also an input" in protected.err


def test_an_image_that_is_all_padding_says_how_the_mask_may_be_meant(cli: Callable) -> None:
    np.save("image.npy", IMAGES)
    np.save("text.npy", TEXTS)
    np.save("mask.npy", KEEP == 0)  # key_padding_mask: the first image has no padding
    refused = cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "--image-mask", "mask.npy")
    assert refused.code == 1
    assert "if the mask is 1 for padding, say --mask-style padding" in refused.err
    options = ("--image-mask", "mask.npy", "--mask-style", "padding")
    result, _ = fused(cli, "image.npy", "text.npy", *options)
    np.save("keep.npy", KEEP)
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--image-mask", "keep.npy"))


# ----------------------------------------------------------------------------------- scales

WHOLE = RNG.integers(-127, 127, (6, 48)).astype(np.int8)


def test_the_scale_in_the_same_dict_as_the_whole_numbers() -> None:
    quantized = {
        "int_repr": torch.from_numpy(WHOLE),
        "scale": torch.tensor(0.5),
        "zero_point": torch.tensor(3),
    }
    torch.save({"image": quantized}, "a.pt")
    with open_features("a.pt") as file:
        values = choose_tensor(file, "image", None).read()
    assert np.array_equal(values, (WHOLE.astype(np.float32) - 3) * np.float32(0.5))


def test_scales_of_groups_are_refused_and_the_advice_works() -> None:
    groups = np.abs(noise(6, 3)) + 1
    save_file({"features": WHOLE, "scales": groups}, "a.safetensors")
    with (
        open_features("a.safetensors") as file,
        pytest.raises(FeatureFileError, match=r"store numpy.repeat\(scale, 16, axis=-1\)"),
    ):
        choose_tensor(file, "image", None)
    repeated = np.repeat(groups, 16, axis=-1)
    save_file({"features": WHOLE, "scales": repeated}, "a.safetensors")
    with open_features("a.safetensors") as file:
        values = choose_tensor(file, "image", None).read()
    wanted = (WHOLE.reshape(6, 3, 16) * groups[..., None]).reshape(6, 48)
    np.testing.assert_allclose(values, wanted, rtol=1e-6)


@pytest.mark.parametrize(("bits", "refused"), [(4, True), (8, False)])
def test_packed_whole_numbers_are_refused(bits: int, refused: bool) -> None:
    tensors = {"features": WHOLE, "scale": np.float32(0.5), "bits": np.int64(bits)}
    np.savez("a.npz", **tensors)
    with open_features("a.npz") as file:
        if refused:
            with pytest.raises(FeatureFileError, match=r"a.npz\[bits\]: says .* of 4 bits: unpack"):
                choose_tensor(file, "image", None)
        else:
            values = choose_tensor(file, "image", None).read()
            assert np.array_equal(values, WHOLE * np.float32(0.5))


def test_a_scale_of_float8_that_may_divide_is_refused() -> None:
    stored = torch.randn(6, 48).to(torch.float8_e4m3fn)
    save_torch({"features": stored, "scale_inv": torch.tensor(2.0)}, "a.safetensors")
    with (
        open_features("a.safetensors") as file,
        pytest.raises(FeatureFileError, match="does not say whether it multiplies or divides"),
    ):
        choose_tensor(file, "image", None)


def test_a_scale_of_groups_beside_float8_is_refused() -> None:
    stored = torch.randn(6, 48).to(torch.float8_e4m3fn)
    save_torch({"features": stored, "block_scale": torch.ones(6, 3)}, "a.safetensors")
    with (
        open_features("a.safetensors") as file,
        pytest.raises(FeatureFileError, match="does not say whether it multiplies or divides"),
    ):
        choose_tensor(file, "image", None)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("logit_scale", torch.tensor(100.0)),
        ("model.logit_scale", torch.tensor(100.0)),
        ("text_scale", torch.tensor(2.0)),
        ("dequant_scale", torch.ones(5)),
    ],
)
def test_a_scale_of_something_else_is_none_of_float8(name: str, scale: torch.Tensor) -> None:
    stored = torch.randn(6, 48).to(torch.float8_e4m3fn)
    save_torch({"image_features": stored, name: scale}, "a.safetensors")
    with open_features("a.safetensors") as file:
        read = choose_tensor(file, "image", None).read()
    np.testing.assert_array_equal(read, stored.to(torch.float32).numpy())


@pytest.mark.slow
def test_what_is_left_out_is_called_what_it_is(cli: Callable) -> None:
    rows = [torch.randn(2, 4), torch.randn(3, 4)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    image = torch.from_numpy(IMAGES)
    torch.save({"image": image, "ragged": nested, "thin": torch.eye(3).to_sparse()}, "image.pt")
    np.save("text.npy", TEXTS)
    result, said = fused(cli, "image.pt", "text.npy")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS))
    assert "not used: ragged (a nested tensor), thin (a sparse tensor)" in said


def test_numpy_arrays_in_a_pytorch_file_are_named(cli: Callable) -> None:
    np.save("text.npy", TEXTS)
    torch.save({"image_features": IMAGES, "epoch": 3}, "image.pt")
    refused = cli("fuse", "image.pt", "text.npy", "-o", "out.npy")
    assert refused.code == 1
    assert "image.pt[image_features]: is a numpy array inside a PyTorch file" in refused.err
    torch.save({"x": torch.from_numpy(IMAGES), "rng": IMAGES}, "image.pt")
    result, said = fused(cli, "image.pt", "text.npy")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS))
    assert "x [3, 6, 48] is the image; not used: rng (a numpy array)" in said


def test_special_tokens_are_named_and_an_option_leaves_them_out(cli: Callable) -> None:
    special = np.array([[1, 0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1, 1]])
    tensors = {"last_hidden_state": TEXTS, "attention_mask": WORDS, "special_tokens_mask": special}
    save_file(tensors, "text.safetensors")
    np.save("image.npy", IMAGES)
    _, said = fused(cli, "image.npy", "text.safetensors")
    assert "attention_mask [3, 7] is the text mask; not used: special_tokens_mask [3, 7]" in said
    options = ("--text-mask", "text.safetensors:special_tokens_mask", "--mask-style", "padding")
    result, said = fused(cli, "image.npy", "text.safetensors", *options)
    assert "special_tokens_mask [3, 7] is the text mask; not used: attention_mask [3, 7]" in said
    assert said.count("not used") == 1
    np.save("words.npy", special == 0)
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--text-mask", "words.npy"))


@pytest.mark.parametrize("name", ["nb_boxes", "num_regions_per_image", "lengths_image"])
def test_further_names_of_counts(name: str, cli: Callable) -> None:
    save_file({"last_hidden_state": IMAGES, name: KEEP.sum(axis=1)}, "image.safetensors")
    np.save("text.npy", TEXTS)
    np.save("keep.npy", KEEP)
    result, _ = fused(cli, "image.safetensors", "text.npy")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--image-mask", "keep.npy"))


@pytest.mark.parametrize(
    "beside",
    [
        {"position_ids": np.r_[0:7, 0:5, 0:3][None]},
        {"cu_seqlens": np.array([0, 7, 12, 15])},
        {"seq_idx": np.repeat([0, 1, 2], [7, 5, 3])[None]},
        {"doclens": np.array([7, 5, 3])},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_packed_sequences_are_refused_and_the_advice_works(beside: dict, cli: Callable) -> None:
    lengths = [7, 5, 3]
    parts = [TEXTS[n, :length] for n, length in enumerate(lengths)]
    packed = np.ascontiguousarray(np.concatenate(parts)[None])
    save_file({"last_hidden_state": packed, **beside}, "text.safetensors")
    np.save("image.npy", IMAGES)
    done = cli("fuse", "image.npy", "text.safetensors")
    assert done.code == 1
    assert "holds the tokens of 3 samples one after the other: store them as [3, 7, " in done.err
    padded = np.zeros_like(TEXTS)
    for n, part in enumerate(parts):
        padded[n, : len(part)] = part
    stack = {"last_hidden_state": padded, "lengths": np.array(lengths)}
    save_file(stack, "text.safetensors")
    np.save("words.npy", np.arange(7) < np.array(lengths)[:, None])
    result, _ = fused(cli, "image.npy", "text.safetensors")
    assert np.array_equal(result, of_arrays(cli, IMAGES, TEXTS, "--text-mask", "words.npy"))


def test_positions_of_one_text_are_no_packing(cli: Callable) -> None:
    text = {"last_hidden_state": TEXTS[:1].copy(), "position_ids": np.arange(7)[None]}
    save_file(text, "text.safetensors")
    np.save("image.npy", IMAGES[:1])
    _, said = fused(cli, "image.npy", "text.safetensors")
    assert "not used: position_ids [1, 7]" in said


@pytest.mark.parametrize("numbers", [np.arange(9) % 3, np.zeros(9, int)])
def test_places_of_patches_in_their_grid_are_no_packing(numbers: np.ndarray, cli: Callable) -> None:
    image = noise(9, 48)
    save_file({"features": image, "positions": numbers}, "image.safetensors")
    np.save("text.npy", TEXTS[0])
    result, _ = fused(cli, "image.safetensors", "text.npy")
    assert np.array_equal(result, of_arrays(cli, image, TEXTS[0]))


def test_positions_that_are_all_zero_are_no_packing(cli: Callable) -> None:
    save_file({"features": TEXTS[0], "position_ids": np.zeros(T, int)}, "text.safetensors")
    np.save("image.npy", IMAGES[0])
    result, _ = fused(cli, "image.npy", "text.safetensors")
    assert np.array_equal(result, of_arrays(cli, IMAGES[0], TEXTS[0]))


@pytest.mark.parametrize("name", ["logits", "attentions", "boxes", "attention_mask", "exp_avg"])
def test_a_file_of_something_else_alone_is_refused(name: str, cli: Callable) -> None:
    save_file({name: IMAGES[0]}, "image.safetensors")
    np.save("text.npy", TEXTS[0])
    done = cli("fuse", "image.safetensors", "text.npy")
    assert (done.code, f"is called {name}, which are no features" in done.err) == (1, True)
    result, _ = fused(cli, "image.safetensors", "text.npy", "--image-key", name)
    assert np.array_equal(result, of_arrays(cli, IMAGES[0], TEXTS[0]))


@pytest.mark.parametrize("name", ["weight_scale", "dequant_scale", "image_scale_inv"])
def test_a_scale_of_an_unclear_name_beside_float8_is_refused(name: str, cli: Callable) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    whole = torch.from_numpy(IMAGES[0]).to(torch.float8_e4m3fn)
    save_torch({"image_features": whole, name: torch.tensor([2.0])}, "image.safetensors")
    np.save("text.npy", TEXTS[0])
    done = cli("fuse", "image.safetensors", "text.npy")
    assert (done.code, "does not say whether it multiplies or divides" in done.err) == (1, True)
    save_torch({"image_features": whole, "scale": torch.tensor([2.0])}, "image.safetensors")
    result, _ = fused(cli, "image.safetensors", "text.npy")
    assert np.array_equal(result, of_arrays(cli, whole.float().numpy() * 2, TEXTS[0]))
