"""One job, files in and files out: the numbers of the plain module, and a report that is true."""

import hashlib
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.lib import format as npy_format

from fusecli import FuseOptions, FusionConfig, ImageTextFusion, fuse_files, save_module
from fusecli.errors import (
    DiagnosisError,
    FeatureFileError,
    OutputError,
    ShapeError,
    UsageError,
)
from fusecli.features.writer import FeatureWriter
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.options import ModuleOptions as Switches
from fusecli.fusion.weights import write_weights
from tests.reference import PlainImageTextFusion

ENGINES = ("numpy", "torch")
DI, DT, D, H = 10, 6, 12, 3


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def trained(path="w.safetensors", heads=H, dim=D, image_dim=DI, text_dim=DT, **switches):
    """A module with weights that are far from initial ones, biases too, and its file."""
    module = ImageTextFusion(dim, heads, image_dim=image_dim, text_dim=text_dim, **switches)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
            if parameter.dim() > 1:
                parameter.mul_(1.5 / parameter.shape[1] ** 0.5)
    save_module(module, path, force=True)
    return module.double().eval()


def expected(module, image, text, **masks):
    """What the plain module gives in float64, for one pair or a stack."""
    masks = {
        name: torch.from_numpy(mask) if isinstance(mask, np.ndarray) else mask
        for name, mask in masks.items()
    }
    with torch.inference_mode():
        fused = module(torch.from_numpy(image).double(), torch.from_numpy(text).double(), **masks)
    return fused.numpy()


def fuse(image, text, output="out.npy", **options):
    """Write the arrays, fuse the files; the result as it is on disk, and the report."""
    options = {"force": True, "weights": "w.safetensors"} | options
    for name, array in (("image.npy", image), ("text.npy", text)):
        if isinstance(array, np.ndarray):
            np.save(name, array)
    if options["weights"] is None:
        del options["weights"]
    image = "image.npy" if isinstance(image, np.ndarray) else image
    text = "text.npy" if isinstance(text, np.ndarray) else text
    report = fuse_files(FuseOptions(image, text, output, **options))
    return load(output), report


def load(path):
    if path.endswith(".npy"):
        return np.load(path, allow_pickle=False)
    if path.endswith(".npz"):
        return np.load(path, allow_pickle=False)["fused"]
    return safetensors.torch.load_file(path)["fused"].float().numpy()


def assert_close(found, wanted, share=1e-5):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= share * max(1.0, np.abs(wanted).max())


# --- one pair, stacks, axes ---------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("P", [1, 2, 40])
@pytest.mark.parametrize(
    "switches", [{}, {"null_token": True}, {"residual": True, "norm": True}], ids=str
)
def test_one_pair_is_what_the_module_gives(engine, P, switches):
    module = trained(**switches)
    image, text = noise(P, DI), noise(5, DT, seed=1)
    fused, report = fuse(image, text, engine=engine)
    assert_close(fused, expected(module, image, text))
    assert fused.dtype == np.float32
    assert report.provenance["engine"] == engine


def test_the_published_module_s_output_for_a_seed():
    torch.manual_seed(3)
    plain = PlainImageTextFusion(768, 8)
    image, text = noise(1, 768), noise(8, 768, seed=1)
    with torch.inference_mode():
        wanted = plain(torch.from_numpy(image), torch.from_numpy(text)).numpy()
    for engine in ENGINES:
        fused, _ = fuse(image, text, weights=None, seed=3, engine=engine)
        assert_close(fused, wanted, 1e-6)


def test_sizes_come_from_the_files_and_options_where_there_are_no_weights():
    torch.manual_seed(0)
    module = ImageTextFusion(DT, 3, image_dim=DI, text_dim=DT, residual=True)
    image, text = noise(4, DI), noise(5, DT, seed=1)
    fused, report = fuse(image, text, weights=None, switches=Switches(heads=3, residual=True))
    assert_close(fused, expected(module.double(), image, text))
    assert report.module["embed_dim"] == DT
    fused, report = fuse(image, text, weights=None, switches=Switches(dim=32))
    assert fused.shape == (5, 32)
    assert report.module["num_heads"] == 8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("image_shape", "options", "tokens"),
    [
        ((3, 4, DI), {}, lambda image: image),
        ((3, DI), {}, lambda image: image[:, None]),  # as many rows as text samples
        ((3, DI), {"image_axes": "ND"}, lambda image: image[:, None]),
        # One image for all.
        ((DI,), {}, lambda image: np.broadcast_to(image, (3, 1, DI))),
        ((1, DI), {}, lambda image: np.broadcast_to(image, (3, 1, DI))),
        ((1, 4, DI), {}, lambda image: np.broadcast_to(image, (3, 4, DI))),
        ((4, DI), {"image_axes": "PD"}, lambda image: np.broadcast_to(image, (3, 4, DI))),
        ((3, DI), {"image_axes": "PD"}, lambda image: np.broadcast_to(image, (3, 3, DI))),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_a_stack_of_texts_takes_images_of_every_kind(
    engine, image_shape, options, tokens, residual
):
    module = trained(residual=residual)
    image, text = noise(*image_shape), noise(3, 5, DT, seed=1)
    fused, report = fuse(image, text, engine=engine, **options)
    assert_close(fused, expected(module, np.ascontiguousarray(tokens(image)), text))
    shared = any("shared by all 3 text samples" in note for note in report.notes)
    assert shared is (tokens(image).strides[0] == 0)


def test_per_sample_vectors_on_both_sides():
    module = trained(null_token=True)
    image, text = noise(4, DI), noise(4, DT, seed=1)
    fused, report = fuse(image, text, image_axes="ND", text_axes="ND")
    assert_close(fused, expected(module, image[:, None], text[:, None])[:, 0])
    assert report.output["axes"] == "ND"


def test_single_vectors_give_a_single_vector():
    module = trained(null_token=True)
    image, text = noise(DI), noise(DT, seed=1)
    fused, _ = fuse(image, text)
    assert_close(fused, expected(module, image[None], text[None])[0])


@pytest.mark.parametrize(
    ("letters", "text_samples"),
    [("DHW", None), ("HWD", None), ("DWH", None), ("NDHW", 2), ("NHWD", 2), ("HWND", 2)],
)
def test_maps_are_their_cells_row_by_row(letters, text_samples):
    trained()
    N, rows, columns = 2, 3, 4
    flat = noise(N, rows * columns, DI)
    text = noise(*([text_samples] if text_samples else []), 5, DT, seed=1)
    if text_samples is None:
        flat = flat[:1]
    wanted, _ = fuse(flat, text)
    # The same numbers, with the axes in the order that the letters say.
    maps = flat.reshape(-1, rows, columns, DI)
    order = ["NHWD".index(c) for c in letters]
    if text_samples is None:
        maps, order = maps[0], ["HWD".index(c) for c in letters]
    fused, report = fuse(maps.transpose(order), text, image_axes=letters)
    assert np.array_equal(fused, wanted)
    assert report.inputs["image"]["sizes"]["H"] == rows


def test_a_map_with_rows_and_columns_swapped_is_the_same_set_of_tokens():
    trained()
    image, text = noise(3, 4, DI), noise(5, DT, seed=1)
    upright, _ = fuse(image, text, image_axes="HWD")
    sideways, _ = fuse(image, text, image_axes="WHD")
    assert_close(upright, sideways)


@pytest.mark.parametrize("order", ["C", "F"])
def test_sequence_first_files_are_read_as_such(order):
    module = trained()
    image, text = noise(4, 3, DI), noise(5, 3, DT, seed=1)
    wanted = expected(module, image.swapaxes(0, 1).copy(), text.swapaxes(0, 1).copy())
    files = (np.asarray(array, order=order) for array in (image, text))
    fused, report = fuse(*files, image_axes="PND", text_axes="TND")
    assert_close(fused, wanted)
    assert report.output["axes"] == "NTD"


def test_transposed_files_are_read_by_name():
    module = trained()
    image, text = noise(4, DI), noise(5, DT, seed=1)
    fused, _ = fuse(image.T, text.T, image_axes="DP", text_axes="DT")
    assert_close(fused, expected(module, image, text))


# --- masks --------------------------------------------------------------------------------

IMAGE_MASK = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
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


# --- chunks -------------------------------------------------------------------------------


def stored(name, array, form):
    """Write one side's stack in a format and type; the file, and the numbers that it holds."""
    if form == "fortran":
        array = np.asfortranarray(array)
    elif form == "big-endian":
        array = array.astype(">f4")
    elif form in ("float16", "float64"):
        array = array.astype(form)
    file = f"{name}.npy"
    if form == "npz":
        file = f"{name}.npz"
        np.savez_compressed(file, **{name: array})
    elif form in ("safetensors", "bfloat16"):
        file = f"{name}.safetensors"
        tensor = torch.from_numpy(array)
        tensor = tensor.bfloat16() if form == "bfloat16" else tensor
        safetensors.torch.save_file({name: tensor}, file)
        array = tensor.float().numpy()
    elif form == "pt":
        file = f"{name}.pt"
        torch.save(torch.from_numpy(array), file)
    else:
        np.save(file, array)
    return file, array.astype(np.float32)


FORMS = ("npy", "fortran", "big-endian", "float16", "float64", "npz", "safetensors", "bfloat16")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", [*FORMS, "pt"])
@pytest.mark.parametrize("axes", ["NPD", "PND"])
def test_chunks_are_as_good_as_the_whole(engine, form, axes, monkeypatch):
    module = trained()
    N = 7
    image, text = noise(N, 4, DI), noise(N, 5, DT, seed=1)
    if axes == "PND":
        image, text = image.swapaxes(0, 1).copy(), text.swapaxes(0, 1).copy()
    (image_file, image), (text_file, text) = (
        stored("image", image, form),
        stored("text", text, form),
    )
    if axes == "PND":
        image, text = image.swapaxes(0, 1).copy(), text.swapaxes(0, 1).copy()
    wanted = expected(module, image, text)
    options = {"engine": engine, "weights": "w.safetensors", "force": True, "image_axes": axes}
    options["text_axes"] = axes.replace("P", "T")
    for budget, chunks in ((1 << 30, 1), (1, N)):
        monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", budget)
        steps = []
        fuse_files(
            FuseOptions(image_file, text_file, "out.npy", **options),
            progress=lambda done, total, steps=steps: steps.append((done, total)),
        )
        assert len(steps) == chunks
        assert steps[-1] == (N, N)
        assert_close(np.load("out.npy"), wanted)


@pytest.mark.parametrize("per_chunk", [2, 3])
def test_chunks_need_not_divide_the_stack(per_chunk, monkeypatch):
    module = trained(residual=True, norm=True)
    image, text = noise(7, 4, DI), noise(7, 5, DT, seed=1)
    monkeypatch.setattr(
        "fusecli.fusion.methods.attention.fusion.chunk_samples", lambda *ignored: per_chunk
    )
    fused, _ = fuse(image, text)
    assert_close(fused, expected(module, image, text), 1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("image_shape", [(7, 4, DI), (7, DI), (4, DI), (1, 4, DI), (DI,)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_take_images_and_masks_of_every_kind(engine, image_shape, masked, monkeypatch):
    trained(null_token=True)
    rng = np.random.default_rng(0)
    image, text = noise(*image_shape), noise(7, 5, DT, seed=1)
    P = 1 if image_shape in ((7, DI), (DI,)) else 4
    options = {"engine": engine, "allow_empty_image": True}
    if image_shape == (4, DI):
        options["image_axes"] = "PD"
    if masked:
        np.save("im.npy", rng.random((7, P)) < 0.5)
        np.save("tm.npy", rng.random((7, 5)) < 0.5)
        options |= {"image_mask": "im.npy", "text_mask": "tm.npy"}
    whole, _ = fuse(image, text, **options)
    monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", 1)
    chunked, _ = fuse(image, text, **options)
    assert_close(chunked, whole, 1e-6)


@pytest.mark.parametrize("output", ["out.npy", "out.npz", "out.safetensors"])
def test_chunks_give_every_format(output, monkeypatch):
    trained()
    image, text = noise(7, 4, DI), noise(7, 5, DT, seed=1)
    whole, _ = fuse(image, text)
    monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", 1)
    chunked, _ = fuse(image, text, output)
    assert_close(chunked, whole, 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("P", [1, 4])
def test_a_slow_disk_gets_what_was_computed_for_it(engine, P, monkeypatch):
    module = trained()
    image, text = noise(7, P, DI), noise(7, 5, DT, seed=1)
    append = FeatureWriter.append

    def slow(writer, rows):
        time.sleep(0.02)  # meanwhile the next chunks are read and computed
        append(writer, rows)

    monkeypatch.setattr(FeatureWriter, "append", slow)
    monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", 1)
    fused, _ = fuse(image, text, engine=engine)
    assert_close(fused, expected(module, image, text))


def test_an_image_that_all_texts_share_is_projected_once():
    trained()
    image, text = noise(300, DI), noise(9, 5, DT, seed=1)
    _, shared = fuse(image, text, image_axes="PD")
    _, one = fuse(image, text.reshape(-1, DT))
    assert shared.plan["multiply_adds"] == one.plan["multiply_adds"]
    _, stack = fuse(np.tile(image, (9, 1, 1)), text)
    assert shared.plan["multiply_adds"] < stack.plan["multiply_adds"]


def test_max_memory_makes_chunks_smaller():
    trained()
    image, text = noise(50, 4, DI), noise(50, 5, DT, seed=1)
    np.save("image.npy", image)
    np.save("text.npy", text)
    counts = []
    for max_memory in (None, 20_000, 1):
        steps = []
        fuse_files(
            FuseOptions(
                "image.npy", "text.npy", "out.npy", force=True, weights="w.safetensors",
                max_memory=max_memory,
            ),
            progress=lambda done, total, steps=steps: steps.append(done),
        )  # fmt: skip
        counts.append(len(steps))
    assert counts[0] == 1 < counts[1] < counts[2] == 50


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_a_bad_row_in_a_late_sample_is_named_and_nothing_is_left(budget, monkeypatch):
    trained()
    image, text = noise(7, 4, DI), noise(7, 5, DT, seed=1)
    image[5, 2, 3] = np.nan
    monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", budget)
    with pytest.raises(
        FeatureFileError, match=r"image.npy: holds NaN at sample 5, token 2, column 3"
    ):
        fuse(image, text)
    assert sorted(os.listdir()) == ["image.npy", "text.npy", "w.safetensors"]


def test_a_replaced_output_is_the_old_one_until_the_new_one_is_whole():
    trained()
    image, text = noise(4, DI), noise(5, DT, seed=1)
    fuse(image, text)
    before = Path("out.npy").read_bytes()
    text[4, 0] = np.inf
    with pytest.raises(FeatureFileError, match=r"text.npy: holds infinity at token 4, column 0"):
        fuse(image, text)
    assert Path("out.npy").read_bytes() == before


# --- types, engines, weights --------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.05), ("float16", 0.006)])
@pytest.mark.parametrize("P", [1, 30])
@pytest.mark.parametrize("null_token", [False, True])
def test_narrow_types_are_near_and_not_the_same(dtype, share, P, null_token):
    module = trained(null_token=null_token)
    image, text = noise(3, P, DI), noise(3, 5, DT, seed=1)
    wanted = expected(module, image, text)
    fused, report = fuse(image, text, dtype=dtype)
    assert_close(fused, wanted, share)
    assert np.abs(fused - wanted).max() > 1e-5
    assert report.provenance["dtype"] == dtype
    assert report.provenance["engine"] == "torch"
    assert fused.dtype == np.float32


def test_small_jobs_run_on_numpy_by_themselves():
    trained()
    _, report = fuse(noise(4, DI), noise(5, DT))
    assert report.provenance["engine"] == "numpy"
    assert "torch" not in report.provenance["libraries"]
    _, report = fuse(noise(4, DI), noise(5, DT), engine="torch")
    assert report.provenance["libraries"]["torch"] == torch.__version__


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("P", [1, 4])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_weights_file_and_its_seed_give_the_same_bytes(engine, P, seed):
    image, text = noise(3, P, DI), noise(3, 5, DT, seed=1)
    config = FusionConfig(D, H, DI, DT, residual=True)
    write_weights("init.safetensors", config, initial_weights(config, seed), seed)
    _, by_file = fuse(image, text, "a.npy", weights="init.safetensors", engine=engine)
    switches = Switches(dim=D, heads=H, residual=True)
    _, by_seed = fuse(
        image, text, "b.npy", weights=None, seed=seed, switches=switches, engine=engine
    )
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    for report in (by_file, by_seed):
        assert report.module["weights"]["seed"] == seed
        assert not report.module["weights"]["trained"]
        said = [*report.notes, *map(str, report.diagnoses)]
        assert sum(f"initial weights, seed {seed}" in line for line in said) == 1
    fuse(image, text, "c.npy", weights=None, seed=seed ^ 1, switches=switches, engine=engine)
    assert Path("a.npy").read_bytes() != Path("c.npy").read_bytes()


@pytest.mark.parametrize("output", ["out.npy", "out.npz", "out.safetensors"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_job_gives_the_same_bytes(output, engine, monkeypatch):
    trained()
    image, text = noise(7, 4, DI), noise(7, 5, DT, seed=1)
    monkeypatch.setattr("fusecli.fusion.base.CHUNK_BYTES", 10_000)
    contents = []
    for _ in range(2):
        fuse(image, text, output, engine=engine)
        contents.append(Path(output).read_bytes())
    assert contents[0] == contents[1]
    if output.endswith(".npz"):  # where the hour could be
        with zipfile.ZipFile(output) as archive:
            assert [entry.date_time[0] for entry in archive.infolist()] == [1980]


@pytest.mark.parametrize(
    ("image_dim", "text_dim", "sentence"),
    [
        (DI + 1, DT, f"image.npy .* is {DI + 1} wide and text .* takes {DI} and {DT}: .*init"),
        (DI, DT + 1, f"text.npy .* is {DT + 1} wide, but .* takes {DI} and {DT}: .*init"),
    ],
)
def test_widths_that_do_not_fit_the_weights_are_refused(image_dim, text_dim, sentence):
    trained()
    with pytest.raises(ShapeError, match=sentence) as caught:
        fuse(noise(4, image_dim), noise(5, text_dim))
    for part in ("image.npy", f"[4, {image_dim}]", "text.npy", f"[5, {text_dim}]", "--weights"):
        assert part in str(caught.value)


# --- results ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4)])
@pytest.mark.parametrize("output", ["out.npy", "out.npz", "out.safetensors"])
@pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16"])
def test_every_output_is_read_by_its_own_library(shape, output, out_dtype):
    text = noise(*shape, seed=1)
    image = noise(3, 4) if len(shape) < 3 else noise(2, 3, 4)
    full, _ = fuse(image, text, weights=None, switches=Switches(heads=2))
    options = {"weights": None, "switches": Switches(heads=2), "out_dtype": out_dtype}
    if out_dtype == "bfloat16" and not output.endswith(".safetensors"):
        with pytest.raises(UsageError, match=r"--out-dtype bfloat16 needs -o FILE.safetensors"):
            fuse(image, text, output, **options)
        return
    fused, report = fuse(image, text, output, **options)
    rounded = torch.from_numpy(full).to(getattr(torch, out_dtype))
    assert np.array_equal(fused.astype(np.float32), rounded.float().numpy())
    assert report.output["dtype"] == out_dtype
    assert report.output["bytes"] == rounded.nbytes
    assert report.output["key"] == (None if output.endswith(".npy") else "fused")
    if output.endswith(".safetensors"):
        with safetensors.safe_open(output, "pt") as file:
            assert file.keys() == ["fused"]
            assert json.loads(file.metadata()["fusecli"])["num_heads"] == 2
            assert file.get_tensor("fused").dtype == getattr(torch, out_dtype)
    else:
        assert fused.dtype == out_dtype


def test_the_output_is_a_plain_npy_file_of_version_1():
    trained()
    fuse(noise(4, DI), noise(5, DT))
    with open("out.npy", "rb") as file:
        assert npy_format.read_magic(file) == (1, 0)
        assert npy_format.read_array_header_1_0(file) == ((5, D), False, np.dtype("<f4"))
        assert len(file.read()) == 4 * 5 * D


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("words.npy", "words.fused.npy"),
        ("words.safetensors", "words.fused.safetensors"),
        ("words.SAFETENSORS", "words.fused.safetensors"),
        ("words.npz", "words.fused.npy"),
        ("words.pt", "words.fused.npy"),
        ("folder/a.b.npy", "a.b.fused.npy"),
    ],
)
def test_the_default_output_has_the_text_s_name_in_this_folder(text, output):
    trained()
    os.mkdir("folder")
    np.save("image.npy", noise(4, DI))
    words = torch.from_numpy(noise(5, DT))
    if text.lower().endswith(".safetensors"):
        safetensors.torch.save_file({"text": words}, text)
    elif text.endswith(".npz"):
        np.savez(text, text=words.numpy())
    elif text.endswith(".pt"):
        torch.save(words, text)
    else:
        np.save(text, words.numpy())
    report = fuse_files(FuseOptions("image.npy", text, weights="w.safetensors"))
    assert report.output["file"] == output
    assert load(output).shape == (5, D)


def test_inputs_are_never_written_over_and_outputs_only_by_force():
    trained()
    image, text = noise(4, DI), noise(5, DT)
    fuse(image, text)
    with pytest.raises(OutputError, match=r"out.npy: exists already: say --force"):
        fuse(image, text, force=False)
    for name in ("image.npy", "text.npy", "w.safetensors"):
        before = Path(name).read_bytes()
        with pytest.raises(OutputError, match="is also an input, and inputs are never changed"):
            fuse(image, text, name)
        assert Path(name).read_bytes() == before


def test_float16_output_that_overflows_is_refused():
    trained()
    image, text = 1e6 * noise(4, DI), noise(5, DT)
    with pytest.raises(OutputError, match=r"float16 ends at 65504: say --out-dtype float32"):
        fuse(image, text, out_dtype="float16")
    assert not os.path.exists("out.npy")


# --- the report ---------------------------------------------------------------------------

TOP = [
    "report_version",
    "inputs",
    "module",
    "plan",
    "stages",
    "attention",
    "output",
    "maps",
    "diagnoses",
    "notes",
    "provenance",
    "attention_mask",
]
INPUT = [
    "file",
    "key",
    "shape",
    "dtype",
    "axes",
    "axes_from",
    "sizes",
    "sha256",
    "mask",
]
MODULE = [
    "method",
    "embed_dim",
    "num_heads",
    "head_dim",
    "image_dim",
    "text_dim",
    "residual",
    "norm",
    "null_token",
    "gate",
    "projected",
    "alpha",
    "layers",
    "ffn_dim",
    "rank",
    "parameters",
    "weights",
]
PROVENANCE = [
    "fusecli",
    "python",
    "machine",
    "libraries",
    "engine",
    "device",
    "dtype",
    "threads",
    "seed",
]


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_report_s_json_has_stable_keys_and_says_what_was_done():
    module = trained()
    image, text = noise(3, 4, DI).astype(np.float16), noise(3, 5, DT, seed=1)
    _, made = fuse(image, text, reports=("r.json", "again.json"))
    report = json.loads(Path("r.json").read_text())
    assert Path("again.json").read_text() == Path("r.json").read_text() == made.to_json()
    assert list(report) == TOP
    assert report["report_version"] == 1
    assert set(report["inputs"]) == {"image", "text"}
    for side, array, letters in (("image", image, "NPD"), ("text", text, "NTD")):
        entry = report["inputs"][side]
        assert list(entry) == INPUT
        assert entry == {
            "file": f"{side}.npy",
            "key": None,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "axes": letters,
            "axes_from": "rank",
            "sizes": dict(zip(letters, array.shape, strict=True)),
            "sha256": sha256(f"{side}.npy"),
            "mask": None,
        }
    assert list(report["module"]) == MODULE
    assert report["module"]["parameters"] == sum(p.numel() for p in module.parameters())
    assert (report["module"]["embed_dim"], report["module"]["num_heads"]) == (D, H)
    assert report["module"]["head_dim"] == D // H
    assert report["module"]["weights"] == {
        "file": "w.safetensors",
        "sha256": sha256("w.safetensors"),
        "seed": None,
        "trained": None,
        "origin": "w.safetensors",
    }
    assert set(report["plan"]) == {
        "scores", "values", "multiply_adds", "plain_multiply_adds", "why", "image_asks",
    }  # fmt: skip
    assert report["output"] == {
        "file": "out.npy",
        "key": None,
        "shape": [3, 5, D],
        "axes": "NTD",
        "dtype": "float32",
        "bytes": 4 * 3 * 5 * D,
        "direction": "text",
        "pool": None,
        "tensors": [{"key": None, "shape": [3, 5, D], "axes": "NTD", "bytes": 4 * 3 * 5 * D}],
    }
    assert list(report["provenance"]) == PROVENANCE
    assert report["provenance"]["libraries"]["numpy"] == np.__version__
    assert report["provenance"]["threads"] >= 1
    assert report["diagnoses"] == report["notes"] == []


def test_untrained_weights_are_said_to_be_so():
    _, report = fuse(noise(4, DI), noise(5, DT), weights=None, switches=Switches(heads=2), seed=7)
    assert report.module["weights"] == {
        "file": None,
        "sha256": None,
        "seed": 7,
        "trained": False,
        "origin": "untrained, seed 7",
    }
    assert report.provenance["seed"] == 7


def test_files_are_hashed_only_where_somebody_asks():
    trained()
    _, report = fuse(noise(4, DI), noise(5, DT))
    assert report.inputs["image"]["sha256"] is None
    _, report = fuse(noise(4, DI), noise(5, DT), provenance=True)
    assert report.inputs["image"]["sha256"] == sha256("image.npy")
    assert report.module["weights"]["sha256"] == sha256("w.safetensors")


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize(("P", "T"), [(1, 5), (4, 5), (300, 2), (2, 60)])
def test_stages_have_the_shapes_of_the_plain_module(null_token, P, T):
    trained(null_token=null_token)
    _, report = fuse(noise(3, P, DI), noise(3, T, DT))
    keys = P + 1 if null_token else P
    assert {stage.name: stage.shape for stage in report.stages} == {
        "text features": (3, T, DT),
        "image features": (3, P, DI),
        "projected text": (3, T, D),
        "projected image": (3, P, D),
        "query, per head": (3, H, T, D // H),
        "key, per head": (3, H, keys, D // H),
        "value, per head": (3, H, keys, D // H),
        "scores": (3, H, T, keys),
        "context, per head": (3, H, T, D // H),
        "fused": (3, T, D),
    }
    formed = {stage.name: stage.formed for stage in report.stages}
    assert formed["fused"]
    assert formed["text features"]
    weighed = P > 1 or null_token
    assert formed["scores"] is weighed
    assert formed["query, per head"] is (weighed and report.plan["scores"] != "key")
    assert formed["key, per head"] is (weighed and report.plan["scores"] != "query")
    for stage in report.stages:
        assert len(stage.letters.split(", ")) == len(stage.shape)


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_entropy_is_that_of_the_plain_module_s_weights(null_token, masked, padded, engine):
    module = trained(null_token=null_token)
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    mask = IMAGE_MASK.astype(bool) if masked else np.ones((3, 4), bool)
    words = np.arange(5) < (np.array([[2], [5], [4]]) if padded else 5)
    words = np.broadcast_to(words, (3, 5))
    np.save("im.npy", mask)
    np.save("tm.npy", words)
    masks = {"image_mask": "im.npy", "text_mask": "tm.npy"}
    _, report = fuse(image, text, engine=engine, **masks)
    tokens = module.image_proj(torch.from_numpy(image).double())
    _, weights = module.attention(
        module.text_proj(torch.from_numpy(text).double()),
        tokens,
        tokens,
        key_padding_mask=torch.from_numpy(~mask),
        average_attn_weights=False,
    )
    entropy = torch.special.entr(weights.detach()).sum(-1).numpy()  # [3, H, 5]
    choices = mask.sum(1) + null_token
    some = choices > 1
    real = words & some[:, None]  # [3, 5]
    each = entropy.swapaxes(1, 2)[real]  # [rows, H]
    highest = np.log(np.repeat(choices, 5).reshape(3, 5)[real])  # [rows]
    assert report.attention["samples"] == some.sum()
    assert np.isclose(report.attention["mean_entropy"], each.mean(), rtol=1e-4)
    ratio = (each / highest[:, None]).mean()
    assert np.isclose(report.attention["entropy_ratio"], ratio, rtol=1e-4)
    assert np.isclose(report.attention["max_entropy"], highest.mean())


def test_there_is_no_entropy_of_a_single_token():
    trained()
    _, report = fuse(noise(1, DI), noise(5, DT))
    assert report.attention is None


# --- diagnoses ----------------------------------------------------------------------------


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


def test_strict_lets_a_result_pass_that_nothing_speaks_against():
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


# --- numbers that are not finite ----------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["image", "text"])
def test_bad_numbers_are_refused_or_stay_in_their_sample(engine, bad, side):
    trained()
    arrays = {"image": noise(3, 4, DI), "text": noise(3, 5, DT, seed=1)}
    clean, _ = fuse(**arrays, engine=engine)
    arrays[side][1, 2, 3] = bad
    what = "NaN" if np.isnan(bad) else "infinity"
    with pytest.raises(FeatureFileError, match=rf"{side}.npy: holds {what} at sample 1, token 2"):
        fuse(**arrays, engine=engine)
    with np.errstate(all="ignore"):
        fused, report = fuse(**arrays, engine=engine, allow_nonfinite=True)
    assert not np.isfinite(fused[1]).all()
    (found,) = [d for d in report.diagnoses if d.code == "nonfinite-result"]
    bad_numbers = fused.size - np.isfinite(fused).sum()
    assert found.message.startswith(f"{bad_numbers:,} of {fused.size:,} numbers of the result")
    assert_close(fused[[0, 2]], clean[[0, 2]])
    json.loads(report.to_json())  # which has no NaN


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("null_token", [False, True])
def test_what_overflows_float16_on_the_way_is_an_error(side, null_token):
    trained(null_token=null_token)
    arrays = {"image": noise(3, 4, DI), "text": noise(3, 5, DT, seed=1)}
    arrays[side] *= 6e4 / np.linalg.norm(arrays[side], axis=-1, keepdims=True)
    fuse(**arrays)  # which float32 carries
    os.unlink("out.npy")
    with pytest.raises(FeatureFileError, match="not finite in float16"):
        fuse(**arrays, dtype="float16")
    assert not os.path.exists("out.npy")


def test_a_query_that_overflows_float16_does_not_become_a_finite_result():
    module = trained()
    with torch.no_grad():
        module.text_proj.weight[:, 0] = 2.0
    save_module(module, "w.safetensors", force=True)
    image, text = noise(4, DI), noise(5, DT, seed=1)
    text[:, 0] = 4e4  # float16 holds it, and not twice as much
    fused, _ = fuse(image, text)
    assert_close(fused, expected(module, image, text), 1e-4)
    with pytest.raises(FeatureFileError, match="not finite in float16"):
        fuse(image, text, dtype="float16")


@pytest.mark.parametrize("name", ["image.npy", "text.npy", "w.safetensors"])
def test_a_file_that_is_changed_while_it_is_read_is_an_error(name):
    trained()
    np.save("image.npy", noise(6, 4, DI))
    np.save("text.npy", noise(6, 3, DT))

    def change(done, total):
        data = bytearray(Path(name).read_bytes())
        data[-8:] = bytes(8)
        with open(name, "r+b") as file:
            file.write(data)
        os.utime(name, ns=(0, time.time_ns() + 10**9))  # clocks of file systems are coarse

    options = FuseOptions("image.npy", "text.npy", "out.npy", weights="w.safetensors")
    with pytest.raises(FeatureFileError, match=f"{name}: changed while it was read"):
        fuse_files(options, progress=change)
    assert not Path("out.npy").exists()


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was():
    trained()
    np.save("image.npy", noise(6, 4, DI))
    np.save("text.npy", noise(6, 3, DT))
    options = FuseOptions("image.npy", "text.npy", "out.npy", weights="w.safetensors")
    fuse_files(options)
    first = Path("out.npy").read_bytes()

    def replace_it(done, total):
        np.save("new.npy", noise(6, 4, DI, seed=9))
        os.replace("new.npy", "image.npy")

    again = FuseOptions("image.npy", "text.npy", "b.npy", weights="w.safetensors")
    fuse_files(again, progress=replace_it)
    assert Path("b.npy").read_bytes() == first
