"""What a job says may be wrong, and what --strict makes of it."""

import os

import numpy as np
import pytest
import torch

from fusecli import FuseOptions, fuse_files, save_module
from fusecli.errors import (
    DiagnosisError,
)
from fusecli.fusion.options import ModuleOptions as Switches
from tests.job.jobs import DI, DT, IMAGE_MASK, D, fuse, noise, trained


def codes(report):
    return [diagnosis.code for diagnosis in report.diagnoses]


@pytest.mark.parametrize(
    ("image_shape", "switches", "found"),
    [
        ((1, DI), {}, True),
        ((DI,), {}, True),
        ((2, DI), {}, False),
        ((1, DI), {"residual": True}, False),
        ((1, DI), {"null_token": True}, False),
        ((1, DI), {"norm": True}, True),
    ],
)
def test_one_image_token_is_diagnosed(image_shape, switches, found):
    trained(**switches)
    fused, report = fuse(noise(*image_shape), noise(5, DT))
    assert ("one-image-token" in codes(report)) is found
    assert np.allclose(fused, fused[:1], atol=1e-5) is found


def test_one_image_token_left_by_the_mask_is_diagnosed():
    trained()
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    np.save("im.npy", IMAGE_MASK)
    _, report = fuse(image, text, image_mask="im.npy")
    (diagnosis,) = report.diagnoses
    assert diagnosis.code == "one-image-token"
    assert "one unmasked image token in 1 of 3 samples" in diagnosis.message
    mended = IMAGE_MASK.copy()
    mended[1, 0] = 1
    np.save("im.npy", mended)
    _, report = fuse(image, text, image_mask="im.npy")
    assert codes(report) == []


@pytest.mark.parametrize("direction", ["text", "image"])
def test_images_without_any_real_token_are_diagnosed(direction):
    trained()
    mask = np.zeros((3, 4), bool)
    np.save("im.npy", mask)
    options = {"image_mask": "im.npy", "allow_empty_image": True, "direction": direction}
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    fused, report = fuse(image, text, **options)
    assert codes(report) == ["empty-image"]
    assert np.array_equal(fused, fuse(noise(3, 4, DI, seed=2), text, **options)[0])
    mask[1, 0] = 1
    np.save("im.npy", mask)
    assert "empty-image" not in codes(fuse(image, text, **options)[1])


def test_uniform_attention_is_diagnosed():
    module = trained()
    image, text = noise(4, DI), noise(5, DT, seed=1)
    assert codes(fuse(image, text)[1]) == []
    with torch.no_grad():
        module.attention.in_proj_weight[:D] = 0
        module.attention.in_proj_bias[:D] = 0
    save_module(module, "w.safetensors", force=True)
    _, report = fuse(image, text)
    assert codes(report) == ["uniform-attention"]
    assert report.attention["entropy_ratio"] == pytest.approx(1)
    assert report.diagnoses[0].remedy == "were these weights trained?"


def test_untrained_weights_with_uniform_attention_say_that_it_is_usual():
    _, report = fuse(noise(4, 64), 0.1 * noise(5, 64), weights=None)
    (diagnosis,) = report.diagnoses
    assert diagnosis.code == "uniform-attention"
    assert "as is usual for untrained weights" in diagnosis.message
    assert "--weights" in diagnosis.remedy


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize(("row", "found"), [(0.0, True), (1e-6, True), (0.05, False)])
def test_rows_of_zeros_without_a_mask_are_diagnosed(side, row, found):
    trained()
    arrays = {"image": noise(3, 4, DI), "text": noise(3, 5, DT, seed=1)}
    arrays[side][1, 2:] = row
    _, report = fuse(**arrays)
    assert codes(report) == ([f"{side}-zero-rows"] if found else [])
    if not found:
        return
    count, of = (2, 12) if side == "image" else (3, 15)
    (diagnosis,) = report.diagnoses
    assert f"{side}.npy: {count} of {of} {side} tokens are zero or nearly so" in diagnosis.message
    assert diagnosis.remedy == f"pass the mask with --{side}-mask"
    mask = np.ones(arrays[side].shape[:2])
    mask[1, 2:] = 0
    np.save("mask.npy", mask)
    _, report = fuse(**arrays, **{f"{side}_mask": "mask.npy"})
    assert codes(report) == []


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_zero_rows_are_counted_over_all_chunks(budget, monkeypatch):
    trained()
    image, text = noise(7, 4, DI), noise(7, 5, DT, seed=1)
    text[[0, 3, 6], 4] = 0
    monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", budget)
    _, report = fuse(image, text)
    (diagnosis,) = report.diagnoses
    assert "3 of 35 text tokens" in diagnosis.message


def test_two_files_with_as_many_rows_are_diagnosed():
    trained()
    image, text = noise(5, DI), noise(5, DT, seed=1)
    _, report = fuse(image, text)
    assert codes(report) == ["rows-are-samples"]
    assert "--image-axes ND --text-axes ND" in report.diagnoses[0].remedy
    assert codes(fuse(image, text, image_axes="PD", text_axes="TD")[1]) == []
    assert codes(fuse(image[:4], text)[1]) == []
    assert "rows-are-samples" not in codes(fuse(image[:1], text[:1])[1])


@pytest.mark.parametrize("side", ["image", "text"])
def test_swapped_axes_are_diagnosed(side):
    # As many tokens as the other side is wide, and another width.
    shapes = {"image": (4, 6), "text": (5, 6)}
    shapes[side] = (6, 9)
    arrays = {name: noise(*shape) for name, shape in shapes.items()}
    options = {"weights": None, "switches": Switches(dim=8, heads=2)}
    _, report = fuse(**arrays, **options)
    named = "DP" if side == "image" else "DT"
    found = {diagnosis.code: diagnosis for diagnosis in report.diagnoses}
    assert f"--{side}-axes {named}" in found[f"{side}-transposed"].remedy
    arrays[side] = noise(7, 9)
    _, report = fuse(**arrays, **options)
    assert f"{side}-transposed" not in codes(report)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize(
    ("dtype", "norm", "found"),
    [
        ("float32", 1e5, False),
        ("float16", 7e4, True),
        ("float16", 6e4, False),
        ("bfloat16", 300, True),
        ("bfloat16", 200, False),
    ],
)
def test_features_too_large_for_a_type_are_diagnosed(side, dtype, norm, found):
    module = trained()
    with torch.no_grad():  # nothing overflows: what is diagnosed is the input
        for parameter in (module.image_proj.weight, module.text_proj.weight):
            parameter.mul_(1e-3)
    save_module(module, "w.safetensors", force=True)
    arrays = {"image": noise(3, 4, DI), "text": noise(3, 5, DT, seed=1)}
    arrays[side][1, 2] *= norm / np.linalg.norm(arrays[side][1, 2])
    _, report = fuse(**arrays, dtype=dtype)
    assert (f"{side}-too-large" in codes(report)) is found


def test_heads_that_had_to_be_assumed_are_diagnosed():
    torch.save(trained(dim=16, heads=2).float().state_dict(), "plain.pt")
    image, text = noise(4, DI), noise(5, DT, seed=1)
    found = codes(fuse(image, text, weights="plain.pt")[1])
    assert found == ["heads-assumed", "module-assumed"]
    given = Switches(heads=2)
    assert codes(fuse(image, text, weights="plain.pt", switches=given)[1]) == ["module-assumed"]
    given = Switches(heads=2, residual=False, null_token=False)
    assert codes(fuse(image, text, weights="plain.pt", switches=given)[1]) == []
    assert codes(fuse(image, text)[1]) == []


@pytest.mark.parametrize(
    ("image", "text", "options", "word"),
    [
        (noise(1, DI), noise(5, DT), {}, "one image token"),
        (noise(5, DI), noise(5, DT), {}, "both files have 5 rows"),
        (np.zeros((4, DI), np.float32), noise(5, DT), {}, "4 of 4 image tokens are zero"),
        (noise(4, DI), 1e3 * noise(5, DT), {"dtype": "bfloat16"}, "norms up to"),
    ],
)
def test_strict_makes_a_diagnosis_an_error_and_leaves_nothing(image, text, options, word):
    trained()
    assert codes(fuse(image, text, **options)[1])
    os.unlink("out.npy")
    with pytest.raises(DiagnosisError, match=word) as caught:
        fuse(image, text, strict=True, reports=("r.json",), **options)
    assert str(caught.value).startswith("--strict: ")
    assert caught.value.exit_code == 1
    assert sorted(os.listdir()) == ["image.npy", "text.npy", "w.safetensors"]


def test_strict_refuses_a_result_that_is_not_finite():
    trained()
    image, text = noise(4, DI), noise(5, DT)
    image[1, 2] = np.nan
    with np.errstate(all="ignore"), pytest.raises(DiagnosisError, match="60 of 60 numbers"):
        fuse(image, text, strict=True, allow_nonfinite=True)
    assert not os.path.exists("out.npy")


def test_untrained_weights_and_uniform_attention_are_one_message():
    np.save("image.npy", noise(4, 64))
    np.save("text.npy", 0.1 * noise(5, 64))
    lines = []
    fuse_files(FuseOptions("image.npy", "text.npy", "out.npy"), lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("warning: attention is close to uniform")
    assert "no --weights: initial weights, seed 0" in lines[0]


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"direction": "image"}, "img.fused.npy"),
        ({"out_dtype": "bfloat16"}, "txt.fused.safetensors"),
        ({"direction": "image", "pool": "mean"}, "img.fused.safetensors"),
    ],
)
def test_the_default_output_follows_the_query_side_and_the_type(options, output):
    np.save("img.npy", noise(4, 16))
    np.save("txt.npy", noise(5, 16))
    report = fuse_files(FuseOptions("img.npy", "txt.npy", **options))
    assert report.output["file"] == output
    assert os.path.exists(output)


def test_strict_lets_a_result_without_a_diagnosis_pass():
    trained()
    fused, report = fuse(noise(4, DI), noise(5, DT), strict=True)
    assert codes(report) == []
    assert fused.shape == (5, D)


def test_people_are_told_every_note_and_diagnosis():
    np.save("image.npy", noise(1, 6))
    np.save("text.npy", noise(3, 5, 6))
    lines = []
    report = fuse_files(
        FuseOptions("image.npy", "text.npy", "out.npy", switches=Switches(heads=2)),
        lines.append,
    )
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: {note}" for note in report.notes
    ]
    assert [line for line in lines if line.startswith("warning: ")] == [
        f"warning: {diagnosis}" for diagnosis in report.diagnoses
    ]
    assert len(lines) == 3
