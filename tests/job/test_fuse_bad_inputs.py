"""Numbers that are not finite, and files that change while they are read."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fusecli import FuseOptions, fuse_files, save_module
from fusecli.errors import (
    FeatureFileError,
)
from tests.job.jobs import DI, DT, ENGINES, assert_close, expected, fuse, noise, trained


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


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_mask_file_that_is_changed_while_it_is_used_is_an_error(side):
    trained()
    np.save("image.npy", noise(6, 4, DI))
    np.save("text.npy", noise(6, 3, DT))
    np.save("mask.npy", np.ones((6, 4 if side == "image" else 3), bool))

    def change(done, total):
        with open("mask.npy", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\0")
        os.utime("mask.npy", ns=(0, time.time_ns() + 10**9))  # clocks of file systems are coarse

    options = FuseOptions(
        "image.npy", "text.npy", "out.npy", weights="w.safetensors", **{f"{side}_mask": "mask.npy"}
    )
    with pytest.raises(FeatureFileError, match=r"mask.npy: changed while it was read"):
        fuse_files(options, progress=change)
    assert not Path("out.npy").exists()
