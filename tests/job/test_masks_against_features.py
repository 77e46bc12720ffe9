"""Masks that do not fit what is stored in the features, and advice that is followed."""

from pathlib import Path

import numpy as np
import pytest

from fusecli.errors import ShapeError
from tests.job.jobs import assert_close, expected, fuse, noise, trained

REAL = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], bool)


def padded():
    """Image `[3, 5, 48]` whose padding is zero, text `[3, 7, 32]`, and what is right for them."""
    module = trained(image_dim=48, text_dim=32)
    image, text = noise(3, 5, 48), noise(3, 7, 32, seed=1)
    image[~REAL] = 0
    return image, text, expected(module, image, text, image_mask=REAL)


def found(report, code):
    return next(diagnosis for diagnosis in report.diagnoses if diagnosis.code == code)


def codes(report):
    return [diagnosis.code for diagnosis in report.diagnoses]


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("key_padding_mask.npy", ~REAL),
        ("cat.pad_mask.npy", ~REAL),
        ("num_boxes.npy", REAL.sum(axis=1)),
        ("attention_mask.npy", REAL),
        ("lengths.npy", REAL),  # marks and no counts, by its shape
        ("0001.npy", REAL),
    ],
)
def test_the_name_of_a_file_is_that_of_its_one_mask(name, mask):
    image, text, right = padded()
    np.save(name, mask)
    fused, report = fuse(image, text, image_mask=name)
    assert_close(fused, right)
    notes = [note for note in report.notes if "is used as the image mask" in note]
    assert notes == {
        "key_padding_mask.npy": [f"{name} is used as the image mask (1 is padding)"],
        "cat.pad_mask.npy": [f"{name} is used as the image mask (1 is padding)"],
        "num_boxes.npy": [f"{name} is used as the image mask (counts of real tokens)"],
    }.get(name, [])


KEEP_FILES = [
    *("mask_padded", "captions_padded", "text_padded", "padded", "padded_mask", "mask_pad"),
    *("attention_mask_padded", "image_pad", "captions.padded", "mask-padded", "no_padding"),
    *("padded_attention_mask", "not_padded", "unpadded_mask", "non-pad-mask", "mask_padded_text"),
]
PADDING_FILES = [
    *("pad_mask", "key_padding_mask", "is_pad", "is_padding", "is_padded", "padding"),
    *("padding_mask_padded", "key-padding-mask", "padding_mask.padded", "pad_mask_text"),
]


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize(
    ("name", "is_padding"),
    [(name, False) for name in KEEP_FILES] + [(name, True) for name in PADDING_FILES],
)
def test_a_file_of_padded_samples_is_no_padding_mask(name, is_padding, side):
    module = trained(image_dim=48, text_dim=32)
    image, text = noise(3, 5, 48), noise(3, 5, 32, seed=1)
    np.save(f"{name}.npy", ~REAL if is_padding else REAL)
    options = {f"{side}_mask": f"{name}.npy"}
    fused, report = fuse(image, text, **options)
    assert_close(fused, expected(module, image, text, **{f"{side}_mask": REAL}))
    assert any("(1 is padding)" in note for note in report.notes) == is_padding


@pytest.mark.parametrize(
    ("name", "real"), [("captions_padded", 1), ("mask_pad", 1), ("pad_mask", 0), ("is_padded", 0)]
)
def test_the_masks_of_a_manifest_go_by_the_names_of_their_files_too(name, real, cli):
    trained(image_dim=48, text_dim=32)
    image, text = noise(5, 48), noise(5, 32, seed=1)
    np.save(f"{name}.npy", REAL[1] == real)
    fused, _ = fuse(image, text, text_mask=f"{name}.npy", mask_style=None if real else "padding")
    with open("m.csv", "w") as file:
        file.write(f"id,image,text,text_mask\na,image.npy,text.npy,{name}.npy\n")
    done = cli("batch", "--manifest", "m.csv", "-o", "runs", "--weights", "w.safetensors")
    assert done.code == 0, done.err
    (result,) = Path("runs").rglob("a*.npy")
    assert_close(np.load(result), fused)
    assert fused.any(axis=1).tolist() == REAL[1].tolist()


@pytest.mark.parametrize("name", ["no_padding", "non_pad", "not-padded", "non-padding-mask"])
def test_a_tensor_that_is_called_no_padding_is_1_for_real_tokens(name):
    image, text, right = padded()
    np.savez("i.npz", image_features=image, **{name: REAL})
    assert_close(fuse("i.npz", text)[0], right)


def test_an_archive_of_a_nameless_mask_goes_by_its_name_too():
    image, text, right = padded()
    np.savez("padding_mask.npz", ~REAL)
    assert_close(fuse(image, text, image_mask="padding_mask.npz")[0], right)


def test_an_option_counts_more_than_the_name_of_a_file():
    image, text, right = padded()
    np.save("padding_mask.npy", REAL)
    with pytest.raises(ShapeError, match="if the mask is 1 for real tokens, say --mask-style keep"):
        fuse(image, text, image_mask="padding_mask.npy")
    fused, report = fuse(image, text, image_mask="padding_mask.npy", mask_style="keep")
    assert_close(fused, right)
    assert not any("is used as the image mask" in note for note in report.notes)


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_mask_of_other_samples_is_diagnosed(side):
    trained(image_dim=48, text_dim=32)
    arrays = {"image": noise(3, 5, 48), "text": noise(3, 5, 32, seed=1)}
    arrays[side][~REAL] = 0
    np.save("mask.npy", REAL[::-1])
    _, report = fuse(**arrays, **{f"{side}_mask": "mask.npy"})
    message = found(report, f"{side}-zero-rows").message
    assert f"{side}.npy: 3 of 10 {side} tokens that the mask calls real are zero" in message
    np.save("mask.npy", REAL)
    _, report = fuse(**arrays, **{f"{side}_mask": "mask.npy"})
    assert f"{side}-zero-rows" not in codes(report)


def test_padding_at_the_other_end_is_not_mended_by_turning_the_mask_around():
    image, text, right = padded()
    np.save("mask.npy", REAL[:, ::-1])
    _, report = fuse(image, text, image_mask="mask.npy")
    diagnosis = found(report, "image-mask-inverted")
    assert "in 1 of 2 samples with padding" in diagnosis.message
    assert "--mask-style" not in diagnosis.remedy
    assert "with the padding at the same end" in diagnosis.remedy
    np.save("mask.npy", REAL)
    assert_close(fuse(image, text, image_mask="mask.npy")[0], right)


@pytest.mark.parametrize(
    ("name", "seems", "remedy"),
    [
        ("padding_mask", "the mask is 1 for real tokens", "call it image_mask"),
        ("image_mask", "the mask seems to mark padding with 1", "call it image_padding_mask"),
        ("mask", "the mask seems to mark padding with 1", "say --mask-style padding"),
    ],
)
def test_an_inverted_mask_beside_the_features_is_mended_as_its_diagnosis_says(name, seems, remedy):
    module = trained(image_dim=48, text_dim=32)
    real = REAL[1:]
    image, text = noise(2, 5, 48), noise(2, 7, 32, seed=1)
    image[~real] = 0
    right = expected(module, image, text, image_mask=real)
    mask = real if name == "padding_mask" else ~real
    np.savez("image.npz", image=image, **{name: mask})
    _, report = fuse("image.npz", text)
    diagnosis = found(report, "image-mask-inverted")
    assert seems in diagnosis.message
    assert diagnosis.remedy.startswith(remedy)
    if remedy.startswith("call it "):
        np.savez("image.npz", image=image, **{remedy.removeprefix("call it "): mask})
        fused, report = fuse("image.npz", text)
    else:
        fused, report = fuse("image.npz", text, mask_style="padding")
    assert_close(fused, right)
    assert "image-mask-inverted" not in codes(report)


def test_an_additive_mask_that_is_inverted_is_not_mended_by_a_style():
    module = trained(image_dim=48, text_dim=32)
    real = REAL[1:]
    image, text = noise(2, 5, 48), noise(2, 7, 32, seed=1)
    image[~real] = 0
    additive = np.where(real, -1e9, 0).astype(np.float32)
    np.save("mask.npy", additive)
    _, report = fuse(image, text, image_mask="mask.npy")
    diagnosis = found(report, "image-mask-inverted")
    assert "its large negative numbers mark real tokens" in diagnosis.message
    assert diagnosis.remedy.startswith("exchange the two numbers")
    np.save("mask.npy", np.where(additive == 0, np.float32(-1e9), np.float32(0)))
    fused, _ = fuse(image, text, image_mask="mask.npy")
    assert_close(fused, expected(module, image, text, image_mask=real))


def test_counts_of_tokens_at_the_other_end_are_diagnosed():
    module = trained(image_dim=48, text_dim=32)
    real = REAL[1:, ::-1].copy()
    image, text = noise(2, 5, 48), noise(2, 7, 32, seed=1)
    image[~real] = 0
    np.save("lengths.npy", real.sum(axis=1))
    _, report = fuse(image, text, image_mask="lengths.npy")
    diagnosis = found(report, "image-mask-inverted")
    assert "its counts are of other tokens than the first" in diagnosis.message
    np.save("mask.npy", real)
    fused, _ = fuse(image, text, image_mask="mask.npy")
    assert_close(fused, expected(module, image, text, image_mask=real))
