"""One job with masks: from files of their own, beside the features, and empty ones."""

import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

from fusecli.errors import (
    FeatureFileError,
    ShapeError,
)
from tests.job.jobs import DI, DT, ENGINES, IMAGE_MASK, assert_close, expected, fuse, noise, trained

TEXT_MASK = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [bool, np.int64, np.float32, np.uint8])
def test_masks_from_files_of_their_own(engine, kind):
    module = trained(residual=True)
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    np.save("im.npy", IMAGE_MASK.astype(kind))
    np.save("tm.npy", TEXT_MASK.astype(kind))
    fused, report = fuse(image, text, engine=engine, image_mask="im.npy", text_mask="tm.npy")
    wanted = expected(module, image, text, image_mask=IMAGE_MASK, text_mask=TEXT_MASK)
    assert_close(fused, wanted)
    assert not fused[TEXT_MASK == 0].any()
    assert report.inputs["image"]["mask"] == {
        "file": "im.npy",
        "key": None,
        "shape": [3, 4],
        "dtype": np.dtype(kind).name,
        "real": 8,
        "padding": 4,
        "found": "option",
    }
    assert report.inputs["text"]["mask"]["padding"] == 6


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_stored_in_masked_rows_does_not_matter(engine):
    trained()
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    np.save("im.npy", IMAGE_MASK)
    np.save("tm.npy", TEXT_MASK)
    options = {"engine": engine, "image_mask": "im.npy", "text_mask": "tm.npy"}
    clean, _ = fuse(image, text, **options)
    image[IMAGE_MASK == 0], text[TEXT_MASK == 0] = np.nan, np.inf
    poisoned, _ = fuse(image, text, **options)
    assert np.array_equal(poisoned, clean)


def test_masked_is_cropped():
    trained(null_token=True)
    image, text = noise(4, DI), noise(5, DT, seed=1)
    np.save("im.npy", np.array([1, 0, 1, 0]))
    masked, _ = fuse(image, text, image_mask="im.npy")
    cropped, _ = fuse(np.ascontiguousarray(image[[0, 2]]), text)
    assert_close(masked, cropped, 1e-6)


def test_one_mask_row_holds_for_every_sample():
    module = trained()
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    np.save("im.npy", IMAGE_MASK[0])
    np.save("tm.npy", TEXT_MASK[0])
    fused, _ = fuse(image, text, image_mask="im.npy", text_mask="tm.npy")
    both = {
        "image_mask": np.tile(IMAGE_MASK[0], (3, 1)),
        "text_mask": np.tile(TEXT_MASK[0], (3, 1)),
    }
    assert_close(fused, expected(module, image, text, **both))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_shared_image_may_have_a_mask_for_all_or_one_a_sample(engine, per_sample):
    module = trained()
    image, text = noise(4, DI), noise(3, 5, DT, seed=1)
    mask = IMAGE_MASK if per_sample else IMAGE_MASK[0]
    np.save("im.npy", mask)
    fused, _ = fuse(image, text, image_axes="PD", image_mask="im.npy", engine=engine)
    stack = np.tile(image, (3, 1, 1))
    masks = np.broadcast_to(mask, (3, 4)).copy()
    assert_close(fused, expected(module, stack, text, image_mask=masks))


def test_a_map_takes_a_mask_of_rows_and_columns():
    module = trained()
    image, text = noise(2, 2, DI), noise(5, DT, seed=1)
    np.save("im.npy", np.array([[1, 0], [1, 1]]))
    fused, _ = fuse(image.transpose(2, 0, 1), text, image_axes="DHW", image_mask="im.npy")
    assert_close(fused, expected(module, image.reshape(4, DI)[[0, 2, 3]], text))


def test_masks_stored_beside_the_features_are_used_and_said():
    module = trained()
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    stored = {
        "image_embeds": image,
        "image_mask": IMAGE_MASK,
        "last_hidden_state": text,
        "attention_mask": TEXT_MASK,
    }
    safetensors.numpy.save_file(stored, "both.safetensors")
    fused, report = fuse("both.safetensors", "both.safetensors")
    wanted = expected(module, image, text, image_mask=IMAGE_MASK, text_mask=TEXT_MASK)
    assert_close(fused, wanted)
    assert report.inputs["image"]["key"] == "image_embeds"
    assert report.inputs["image"]["mask"]["found"] == "beside the features"
    assert report.inputs["text"]["mask"]["key"] == "attention_mask"
    assert "both.safetensors[image_mask] is used as the image mask" in report.notes
    assert "both.safetensors[attention_mask] is used as the text mask" in report.notes

    ignored, report = fuse("both.safetensors", "both.safetensors", image_mask="none")
    assert_close(ignored, expected(module, image, text, text_mask=TEXT_MASK))
    assert report.inputs["image"]["mask"] is None
    assert not np.allclose(ignored, fused, atol=1e-3)


def test_an_attention_mask_beside_the_image_is_the_image_s():
    module = trained()
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    safetensors.numpy.save_file(
        {"features": image, "attention_mask": IMAGE_MASK}, "image.safetensors"
    )
    fused, report = fuse("image.safetensors", text)
    assert_close(fused, expected(module, image, text, image_mask=IMAGE_MASK))
    assert report.inputs["text"]["mask"] is None


@pytest.mark.parametrize(
    ("mask", "error", "sentence"),
    [
        (np.ones((3, 5)), ShapeError, r"has shape \[3, 5\], expected \[3, 4\] or \[4\]"),
        (np.ones((4, 3)), ShapeError, r"has shape \[4, 3\], expected"),
        (np.ones((2, 4)), ShapeError, r"has shape \[2, 4\], expected"),
        (np.ones((1, 4)), ShapeError, r"has shape \[1, 4\], expected"),
        (np.full((3, 4), 2), FeatureFileError, "1 for a real token and 0 for padding, found 2"),
        (np.full((3, 4), -1e9), FeatureFileError, "0 for padding, found -1e"),
        (np.full((3, 4), np.nan), FeatureFileError, "0 for padding, found nan"),
        (
            np.eye(3, 4) + np.eye(3, 4, 1)[::-1] * 2,
            FeatureFileError,
            r"found 2 at \[0, 3\]: for other masks say",
        ),
        (np.array([1, 0, 0.5, 7]), FeatureFileError, r"found 0\.5 at \[2\]: for other masks say"),
        (
            np.zeros((3, 4), int),
            ShapeError,
            r"sample 0 \(and 2 more\) has every image token masked",
        ),
    ],
)
def test_masks_that_cannot_be_are_refused(mask, error, sentence):
    trained()
    np.save("im.npy", mask)
    with pytest.raises(error, match=sentence):
        fuse(noise(3, 4, DI), noise(3, 5, DT), image_mask="im.npy")
    assert not os.path.exists("out.npy")


def test_a_text_that_is_all_padding_is_refused():
    trained()
    np.save("tm.npy", np.zeros((3, 5), bool))
    with pytest.raises(FeatureFileError, match="masks every text token: there is nothing to fuse"):
        fuse(noise(3, 4, DI), noise(3, 5, DT), text_mask="tm.npy")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("P", [1, 4])
@pytest.mark.parametrize("switches", [{}, {"residual": True}, {"null_token": True}], ids=str)
def test_an_empty_image_gives_the_output_bias_where_it_is_allowed(engine, P, switches):
    module = trained(**switches)
    image, text = noise(3, P, DI), noise(3, 5, DT, seed=1)
    mask = np.ones((3, P), int)
    mask[1] = 0
    image[1] = np.nan
    np.save("im.npy", mask)
    with pytest.raises(ShapeError, match=r"image.npy: sample 1 has every image token masked"):
        fuse(image, text, image_mask="im.npy", engine=engine)
    fused, _ = fuse(image, text, image_mask="im.npy", engine=engine, allow_empty_image=True)
    assert_close(fused, expected(module, image, text, image_mask=mask, allow_empty_image=True))
    if not switches.get("residual"):
        bias = module.attention.out_proj.bias.detach().numpy()
        assert_close(fused[1], np.tile(bias, (5, 1)))
