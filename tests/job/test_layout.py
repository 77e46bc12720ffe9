"""What the axes of two files are taken to mean, what is said of it, and advice that is followed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fusecli import FuseOptions, MapOptions, fuse_files
from fusecli.batch import BatchOptions, ReadOptions, run_batch
from fusecli.errors import DiagnosisError, ShapeError
from fusecli.fusion.options import ModuleOptions
from fusecli.pairs.open import PairOptions
from tests.job.jobs import assert_close, expected, fuse, noise, trained


def codes(report):
    return [diagnosis.code for diagnosis in report.diagnoses]


def both_sides(image, text, output, **options):
    np.save("image.npy", image)
    np.save("text.npy", text)
    fuse_files(
        FuseOptions("image.npy", "text.npy", output, weights="w.safetensors", direction="both",
                    force=True, **options)
    )  # fmt: skip


@pytest.mark.parametrize("images", [1, 7, 5])
def test_sequence_first_stacks_are_named_and_readable(images):
    """torch's layout without batch_first: `[T, N, D]` and `[P, N, D]`."""
    module = trained(image_dim=48, text_dim=32)
    image, text = noise(images, 3, 48), noise(7, 3, 32, seed=1)
    if images == 5:
        with pytest.raises(ShapeError) as refused:
            fuse(image, text)
        advice = str(refused.value)
    else:
        _, report = fuse(image, text)
        assert "sequence-first" in codes(report)
        advice = next(str(found) for found in report.diagnoses if found.code == "sequence-first")
    assert "--text-axes TND --image-axes PND" in advice
    assert "DHW" not in advice
    fused, report = fuse(image, text, text_axes="TND", image_axes="PND")
    wanted = expected(module, image.swapaxes(0, 1).copy(), text.swapaxes(0, 1).copy())
    assert fused.shape[:2] == (3, 7)
    assert_close(fused, wanted)
    assert "sequence-first" not in codes(report)


def test_stacks_with_other_second_axes_are_read_without_a_word():
    trained(image_dim=48, text_dim=32)
    _, report = fuse(noise(7, 4, 48), noise(7, 3, 32))
    assert codes(report) == []


@pytest.mark.parametrize("texts", [(7, 32), (1, 7, 32), (32,)])
@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_one_text_for_many_images_is_shared(texts, engine):
    module = trained(image_dim=48, text_dim=32)
    image, text = noise(8, 5, 48), noise(*texts, seed=1)
    fused, report = fuse(image, text, engine=engine)
    every = np.repeat(text.reshape(1, -1, 32), 8, axis=0)
    wanted = expected(module, image, every)
    assert_close(fused, wanted if len(texts) > 1 else wanted[:, 0])
    assert "one text is shared by all 8 images" in report.notes


def test_one_text_for_many_images_in_chunks_with_masks_maps_and_both_directions():
    module = trained(image_dim=48, text_dim=32)
    image, text = noise(40, 5, 48), noise(7, 32, seed=1)
    seen, words = np.arange(5) < 1 + np.arange(40)[:, None] % 5, np.arange(7) < 4
    np.save("im.npy", seen)
    np.save("tm.npy", words)
    fused, report = fuse(
        image, text, image_mask="im.npy", text_mask="tm.npy", max_memory=20_000,
        maps=MapOptions(attention="maps.npy"),
    )  # fmt: skip
    every = np.repeat(text[None], 40, axis=0)
    wanted = expected(module, image, every, image_mask=seen) * words[None, :, None]
    assert_close(fused, wanted)
    maps = np.load("maps.npy")
    assert maps.shape == (40, 7, 5)
    assert_close(maps[:, :4].sum(axis=2), np.ones((40, 4), np.float32))
    assert report.inputs["text"]["mask"]["real"] == 4
    both_sides(image, text, "both.npz", max_memory=20_000)
    both = np.load("both.npz")
    assert_close(both["fused_text"], expected(module, image, every))
    both_sides(image, every, "stacked.npz")
    assert both["fused_image"].shape == (40, 5, 12)
    assert_close(both["fused_image"], np.load("stacked.npz")["fused_image"])


def test_a_text_with_a_row_an_image_is_not_shared_silently():
    trained(image_dim=48, text_dim=32)
    with pytest.raises(ShapeError, match="say --text-axes ND if each text row is a sample"):
        fuse(noise(7, 5, 48), noise(7, 32))
    fused, _ = fuse(noise(7, 5, 48), noise(7, 32), text_axes="ND")
    assert fused.shape == (7, 12)
    fused, _ = fuse(noise(7, 5, 48), noise(7, 32), text_axes="TD")
    assert fused.shape == (7, 7, 12)


@pytest.mark.parametrize(("shape", "named"), [((64, 7, 7), "DHW"), ((7, 7, 64), "HWD")])
def test_a_feature_map_beside_one_text_is_named(shape, named):
    module = trained(image_dim=64, text_dim=32)
    image, text = noise(*shape), noise(5, 32, seed=1)
    with pytest.raises(ShapeError, match=f"say --image-axes {named} for one feature map"):
        fuse(image, text)
    fused, _ = fuse(image, text, image_axes=named)
    cells = image.reshape(64, 49).T if named == "DHW" else image.reshape(49, 64)
    assert_close(fused, expected(module, np.ascontiguousarray(cells), text))


def test_a_vector_for_each_text_is_told_where_it_is_a_guess():
    module = trained(image_dim=48, text_dim=32)
    image, text = noise(50, 48), noise(50, 4, 32, seed=1)
    fused, report = fuse(image, text)
    assert_close(fused, expected(module, image[:, None], text))
    (note,) = [note for note in report.notes if "--image-axes PD" in note]
    assert "the image's 50 rows are read as one vector for each of the 50 text samples" in note
    fused, _ = fuse(image, text, image_axes="PD")
    assert_close(fused, expected(module, np.repeat(image[None], 50, 0), text))


def test_many_features_of_a_narrow_width_look_swapped():
    image, text = noise(2048, 36), noise(6, 768, seed=1)
    _, report = fuse(image, text, weights=None)
    assert "image-transposed" in codes(report)
    advice = next(d.remedy for d in report.diagnoses if d.code == "image-transposed")
    assert "--image-axes DP" in advice
    fused, report = fuse(image, text, weights=None, image_axes="DP")
    assert "image-transposed" not in codes(report)
    right, _ = fuse(np.ascontiguousarray(image.T), text, weights=None)
    assert np.array_equal(fused, right)


def test_a_width_of_one_is_no_feature():
    image, text = noise(512, 1), noise(6, 768, seed=1)
    with pytest.raises(ShapeError, match="width 1, which is no feature: say --image-axes DP"):
        fuse(image, text, weights=None)
    fused, _ = fuse(image, text, weights=None, image_axes="DP")
    right, _ = fuse(image.T.copy(), text, weights=None)
    assert np.array_equal(fused, right)


def test_a_named_width_that_no_feature_has_is_told():
    options = {"weights": None, "switches": ModuleOptions(dim=32)}
    _, report = fuse(noise(7, 3, 48), noise(5, 32), image_axes="DHW", **options)
    assert "image-transposed" in codes(report)
    _, report = fuse(noise(48, 3, 7), noise(5, 32), image_axes="DHW", **options)
    assert "image-transposed" not in codes(report)


def test_several_texts_of_an_image_are_a_manifest_with_rows():
    module = trained(image_dim=48, text_dim=32)
    images, captions = noise(3, 5, 48), noise(15, 7, 32, seed=1)
    with pytest.raises(ShapeError) as refused:
        fuse(images, captions)
    advice = str(refused.value)
    assert "5 texts of each image" in advice
    assert "image,image_row,text,text_row" in advice
    assert "DHW" not in advice
    lines = [f"image.npy,{row // 5},text.npy,{row}" for row in range(15)]
    Path("m.csv").write_text("\n".join(["image,image_row,text,text_row", *lines]) + "\n")
    summary = run_batch(BatchOptions(PairOptions(manifest="m.csv"), "out", weights="w.safetensors"))
    assert (summary.done, summary.failed) == (15, 0)
    for row in range(15):
        made = np.load(f"out/text/{row}.npy")
        assert_close(made, expected(module, images[row // 5], captions[row]))


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("samples", [None, 6])
def test_an_inverted_mask_is_diagnosed(side, samples, monkeypatch):
    """torch's key_padding_mask is true for padding; only the zeros of the padding take part."""
    trained(image_dim=48, text_dim=32)
    shapes = {"image": (5, 48), "text": (7, 32)}
    arrays = {
        name: noise(*(() if samples is None else (samples,)), *shape, seed=len(name))
        for name, shape in shapes.items()
    }
    tokens = shapes[side][0]
    padding = np.zeros((samples or 1, tokens), bool)
    padding[:, 3:] = True
    padding[: (samples or 1) // 2] = np.arange(tokens) > 0
    if samples is None:
        padding = padding[0]
    arrays[side][padding] = 0
    np.save("mask.npy", padding)
    _, report = fuse(**arrays, **{f"{side}_mask": "mask.npy"})
    found = next(d for d in report.diagnoses if d.code == f"{side}-mask-inverted")
    if samples:
        assert "in 6 of 6 samples with padding" in found.message
    assert found.remedy.startswith("say --mask-style padding")
    told, _ = fuse(**arrays, **{f"{side}_mask": "mask.npy", "mask_style": "padding"})
    np.save("mask.npy", ~padding)
    made, report = fuse(**arrays, **{f"{side}_mask": "mask.npy"})
    assert f"{side}-mask-inverted" not in codes(report)
    np.testing.assert_array_equal(told, made)


def test_an_inverted_mask_beside_the_features_is_mended_by_its_name():
    trained(image_dim=48, text_dim=32)
    image, padding = noise(5, 48), np.arange(5) > 2
    image[padding] = 0
    np.save("text.npy", noise(7, 32))
    made = {}
    for name in ("image_mask", "image_padding_mask"):
        np.savez("image.npz", image=image, **{name: padding})
        report = fuse_files(
            FuseOptions("image.npz", "text.npy", f"{name}.npy", weights="w.safetensors")
        )
        made[name] = report, np.load(f"{name}.npy")
    report, _ = made["image_mask"]
    found = next(d for d in report.diagnoses if d.code == "image-mask-inverted")
    assert found.remedy.startswith("call it image_padding_mask")
    report, rows = made["image_padding_mask"]
    assert "image-mask-inverted" not in codes(report)
    np.save("cropped.npy", image[:3])
    fuse_files(FuseOptions("cropped.npy", "text.npy", "c.npy", weights="w.safetensors"))
    np.testing.assert_allclose(rows, np.load("c.npy"), atol=1e-5)


def test_a_style_of_one_mask_leaves_an_attention_mask_beside_the_other_side_as_it_is():
    """--mask-style padding is said of the image's mask; a tokenizer's attention_mask is none."""
    trained(image_dim=48, text_dim=32)
    words, patches = np.array([1, 1, 1, 1, 0, 0, 0]), np.array([0, 0, 0, 1, 1])
    np.save("image.npy", noise(5, 48))
    np.save("padding.npy", patches)
    np.save("keep.npy", 1 - patches)
    np.savez("text.npz", last_hidden_state=noise(7, 32), attention_mask=words)
    made = []
    for mask, style in (("keep.npy", None), ("padding.npy", "padding")):
        options = FuseOptions(
            "image.npy",
            "text.npz",
            f"{mask}.fused.npy",
            weights="w.safetensors",
            image_mask=mask,
            mask_style=style,
        )
        fuse_files(options)
        made.append(np.load(f"{mask}.fused.npy"))
    assert (made[0][4:] == 0).all()
    np.testing.assert_array_equal(*made)


def test_an_inverted_mask_of_some_samples_is_counted_and_strict_fails():
    trained(image_dim=48, text_dim=32)
    image, text = noise(6, 5, 48), noise(6, 7, 32)
    mask = np.ones((6, 5), bool)
    mask[:, 3:] = False
    image[:4, 3:] = 0
    image[4:, :3] = 0
    np.save("mask.npy", mask)
    _, report = fuse(image, text, image_mask="mask.npy")
    found = next(d for d in report.diagnoses if d.code == "image-mask-inverted")
    assert "in 2 of 6 samples with padding" in found.message
    with pytest.raises(DiagnosisError, match="the mask seems to mark padding"):
        fuse(image, text, image_mask="mask.npy", strict=True)


def test_a_batch_says_of_masks_and_layouts_what_a_job_says(tmp_path):
    trained(image_dim=48, text_dim=32)
    Path("i").mkdir()
    Path("t").mkdir()
    image, text, mask = noise(5, 48), noise(7, 32), np.arange(5) > 2
    image[mask] = 0
    np.savez("i/a.npz", image=image, image_mask=mask)  # inverted
    np.savez("i/b.npz", image=image, image_mask=~mask)
    np.save("i/c.npy", noise(20, 48))
    for name in "ab":
        np.save(f"t/{name}.npy", text)
    np.save("t/c.npy", noise(20, 32))
    told = []
    summary = run_batch(
        BatchOptions(PairOptions("i", "t"), "out", weights="w.safetensors"), told.append
    )
    assert summary.done == 3
    assert summary.diagnoses == {"image-mask-inverted": 1, "rows-are-samples": 1}
    assert summary.notes == {"mask-used": 2, "tensors-used: image, image_mask": 2}
    lines = "\n".join(summary.lines())
    assert "note: 2 pairs: i/a.npz[image_mask] is used as the image mask" in lines
    assert (
        "warning: 1 pair: i/a.npz[image]: all image tokens that the mask calls real are zero"
        in lines
    )
    ignored = run_batch(
        BatchOptions(
            PairOptions("i", "t"), "out2", weights="w.safetensors",
            reading=ReadOptions(image_mask=False),
        )
    )  # fmt: skip
    assert ignored.notes == {"tensors-used: image": 2}  # it names the masks as not used


# --------------------------------------------------------------------- mixed layouts, flat tokens


def plainly_fused(cli, image, text, *options):
    np.save("plain_image.npy", image)
    np.save("plain_text.npy", text)
    done = cli("fuse", "plain_image.npy", "plain_text.npy", "-o", "plain.npy", "-f", *options)
    assert done.code == 0, done.err
    return np.load("plain.npy")


@pytest.mark.parametrize(
    ("image", "text", "advice"),
    [
        ((3, 49, 48), (7, 3, 32), ("--text-axes", "TND")),
        ((49, 3, 48), (3, 7, 32), ("--image-axes", "PND")),
        ((3, 48), (7, 3, 32), ("--text-axes", "TND", "--image-axes", "ND")),
        ((6, 1, 48), (1, 7, 32), ("--image-axes", "PND")),
    ],
)
def test_one_side_sequence_first_is_refused_and_the_advice_works(image, text, advice, folder, cli):
    rng = np.random.default_rng(0)
    x, t = (rng.standard_normal(shape).astype(np.float32) for shape in (image, text))
    np.save("i.npy", x)
    np.save("t.npy", t)
    refused = cli("fuse", "i.npy", "t.npy", "-o", "o.npy")
    assert refused.code == 1
    assert not os.path.exists("o.npy")
    assert f"say {' '.join(advice)}" in refused.err
    followed = cli("fuse", "i.npy", "t.npy", "-o", "o.npy", *advice)
    assert followed.code == 0, followed.err
    if "PND" in advice:
        x = x.swapaxes(0, 1)
    if "TND" in advice:
        t = t.swapaxes(0, 1)
    options = ("--image-axes", "ND") if x.ndim == 2 else ()
    np.testing.assert_allclose(np.load("o.npy"), plainly_fused(cli, x, t, *options), atol=1e-5)


@pytest.mark.parametrize("shape", [(224, 224, 3), (480, 640, 3), (2, 224, 224, 3)])
def test_pictures_with_channels_last_are_refused_as_pixels(shape, folder, cli):
    np.save("i.npy", np.zeros(shape, np.float32))
    np.save("t.npy", np.ones((7, 32), np.float32))
    refused = cli("fuse", "i.npy", "t.npy")
    assert refused.code == 1
    assert "is the shape of the pixels of a picture" in refused.err


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("lengths", [6, 4, 5]),
        ("num_tokens", [6, 4, 5]),
        ("cu_seqlens", [0, 6, 10, 15]),
        ("offsets", [0, 6, 10]),
        ("batch_index", [0] * 6 + [1] * 4 + [2] * 5),
    ],
)
def test_tokens_of_several_samples_in_a_row_are_refused_and_the_advice_works(
    name, numbers, folder, cli
):
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((15, 32)).astype(np.float32)
    images = rng.standard_normal((3, 5, 48)).astype(np.float32)
    np.save("i.npy", images)
    save_file({"features": flat, name: np.array(numbers)}, "t.safetensors")
    refused = cli("fuse", "i.npy", "t.safetensors", "-o", "o.npy")
    assert refused.code == 1
    assert "holds the tokens of 3 samples one after the other: store them as [3, 6, 32]" in (
        refused.err
    )
    lengths = [6, 4, 5]
    split = torch.from_numpy(flat).split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(split, batch_first=True).numpy()
    save_file({"features": padded, "lengths": np.array(lengths)}, "t.safetensors")
    assert cli("fuse", "i.npy", "t.safetensors", "-o", "o.npy").code == 0
    result = np.load("o.npy")
    for sample, rows in enumerate(split):
        wanted = plainly_fused(cli, images[sample], rows.numpy())
        np.testing.assert_allclose(result[sample, : len(rows)], wanted, atol=1e-5)
        assert not result[sample, len(rows) :].any()
    save_file({"features": flat, name: np.array(numbers)}, "t.safetensors")
    one = cli("fuse", "i.npy", "t.safetensors", "-o", "o.npy", "-f", "--text-mask", "none")
    assert one.code == 0  # they are said to be the tokens of one text


def test_rows_of_sequence_first_stacks_are_told_in_a_batch(folder, cli):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((7, 3, 48)).astype(np.float32)
    text = rng.standard_normal((5, 3, 32)).astype(np.float32)
    np.save("i.npy", image)
    np.save("t.npy", text)
    rows = "".join(f"{row},i.npy,{row},t.npy,{row}\n" for row in range(3))
    with open("m.csv", "w") as file:
        file.write("id,image,image_row,text,text_row\n" + rows)
    told = cli("batch", "--manifest", "m.csv", "-o", "out", "--json")
    assert json.loads(told.out)["diagnoses"]["sequence-first"] == 3
    assert "say --text-axes TND --image-axes PND" in told.err
    advice = ("--text-axes", "TND", "--image-axes", "PND")
    followed = cli("batch", "--manifest", "m.csv", "-o", "named", "--json", *advice)
    assert "sequence-first" not in json.loads(followed.out)["diagnoses"]
    for row in range(3):
        wanted = plainly_fused(cli, image[:, row], text[:, row])
        np.testing.assert_allclose(np.load(f"named/{row}.npy"), wanted, atol=1e-5)
    with open("m.csv", "a") as file:
        file.write("9,i.npy,2,t.npy,6\n")
    beyond = cli("batch", "--manifest", "m.csv", "-o", "again")
    assert "has no text_row 6: [5, 3, 32] holds 5 samples, rows 0 to 4" in beyond.err


def test_a_row_that_only_the_second_axis_has_says_so(folder, cli):
    np.save("i.npy", np.ones((3, 9, 48), np.float32))
    np.save("t.npy", np.ones((7, 32), np.float32))
    with open("m.csv", "w") as file:
        file.write("id,image,image_row,text\na,i.npy,0,t.npy\nb,i.npy,5,t.npy\n")
    done = cli("batch", "--manifest", "m.csv", "-o", "out")
    assert done.code == 3
    assert "say --image-axes PND" in done.err


def test_files_and_folders_named_after_the_other_side_are_told(folder, cli):
    rng = np.random.default_rng(0)
    np.save("text_feats.npy", rng.standard_normal((7, 32)).astype(np.float32))
    np.save("image_feats.npy", rng.standard_normal((6, 48)).astype(np.float32))
    right = cli("fuse", "image_feats.npy", "text_feats.npy", "-o", "a.npy")
    assert "other way round" not in right.err
    swapped = cli("fuse", "text_feats.npy", "image_feats.npy", "-o", "b.npy")
    assert "the image is read from text_feats.npy and the text from image_feats.npy" in swapped.err
    for name in ("captions", "images"):
        os.mkdir(name)
        np.save(f"{name}/a.npy", np.ones((7, 32), np.float32))
    assert "other way round" in cli("batch", "captions", "images", "-o", "out").err
    assert "other way round" not in cli("batch", "images", "captions", "-o", "right").err


@pytest.mark.parametrize(("shape", "axes"), [((64, 7), "DT"), ((3, 64, 7), "NDT")])
def test_a_text_whose_axes_are_swapped_is_refused_and_the_advice_works(shape, axes, folder, cli):
    rng = np.random.default_rng(0)
    text = rng.standard_normal(shape).astype(np.float32)
    image = rng.standard_normal((*shape[:-2], 6, 48)).astype(np.float32)
    np.save("i.npy", image)
    np.save("t.npy", text)
    refused = cli("fuse", "i.npy", "t.npy", "-o", "o.npy")
    assert refused.code == 1
    assert f"if its axes are swapped say --text-axes {axes}" in refused.err
    assert cli("fuse", "i.npy", "t.npy", "-o", "o.npy", "--text-axes", axes).code == 0
    wanted = plainly_fused(cli, image, text.swapaxes(-1, -2))
    np.testing.assert_allclose(np.load("o.npy"), wanted, atol=1e-5)
