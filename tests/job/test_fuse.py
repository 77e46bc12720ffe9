"""One job, files in and files out: what it gives is what the plain module gives."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.lib import format as npy_format

from fusecli import FuseOptions, FusionConfig, ImageTextFusion, fuse_files
from fusecli.errors import (
    OutputError,
    ShapeError,
    UsageError,
)
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.options import ModuleOptions as Switches
from fusecli.fusion.weights import write_weights
from tests.job.jobs import DI, DT, ENGINES, D, H, assert_close, expected, fuse, load, noise, trained
from tests.reference import PlainImageTextFusion


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
