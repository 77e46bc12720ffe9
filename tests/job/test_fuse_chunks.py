"""One job in chunks: the same numbers as in one piece, with bounded memory."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from fusecli import FuseOptions, fuse_files
from fusecli.errors import (
    FeatureFileError,
)
from fusecli.features.writer import FeatureWriter
from tests.job.jobs import DI, DT, ENGINES, assert_close, expected, fuse, noise, stored, trained

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
def test_a_slow_disk_does_not_change_what_is_written(engine, P, monkeypatch):
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
