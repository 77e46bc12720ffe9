"""What is no feature though it has the shape or the name of one; scales of other kinds."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.axes import read_axes
from fusecli.features.file import open_features
from fusecli.features.select import choose_tensor

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((6, 48)).astype(np.float32)
WHOLE = RNG.integers(-127, 127, (6, 48)).astype(np.int8)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shape", [(3, 224, 224), (2, 3, 336, 336)])
def test_the_shape_of_pixels_is_refused_unless_meant(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="is the shape of the pixels of a picture: give what an"):
        read_axes("image", shape, None, "i.npy")
    named = "NPD" if len(shape) == 3 else "NDHW"
    assert read_axes("image", shape, named, "i.npy").letters == named
    assert read_axes("text", (3, 224, 224), None, "t.npy").letters == "NTD"


def test_pixels_by_name_are_refused_unless_meant() -> None:
    save_file({"pixel_values": REAL}, "a.safetensors")
    with open_features("a.safetensors") as file:
        with pytest.raises(FeatureFileError, match="are the pixels of pictures"):
            choose_tensor(file, "image", None)
        assert choose_tensor(file, "image", "pixel_values").key == "pixel_values"


def test_float8_with_a_scale_is_multiplied_by_it() -> None:
    stored = torch.from_numpy(REAL).to(torch.float8_e4m3fn)
    save_torch({"image": stored, "image_scale": torch.tensor(0.5)}, "a.safetensors")
    with open_features("a.safetensors") as file:
        values = choose_tensor(file, "image", None).read()
    wanted = REAL.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(0.5)
    np.testing.assert_array_equal(values, wanted)


def test_float8_without_a_scale_is_read_as_it_is() -> None:
    save_torch({"image": torch.from_numpy(REAL).to(torch.float8_e4m3fn)}, "a.safetensors")
    with open_features("a.safetensors") as file:
        values = choose_tensor(file, "image", None).read()
    np.testing.assert_array_equal(values, REAL.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("name", ["zero_point", "zp", "image_zero_point"])
def test_zero_points_are_subtracted_before_the_scale(name: str) -> None:
    tensors = {"image": WHOLE, "scale": np.array(0.1, np.float32), name: np.array(3)}
    save_file(tensors, "a.safetensors")
    with open_features("a.safetensors") as file:
        values = choose_tensor(file, "image", None).read()
    np.testing.assert_array_equal(values, (WHOLE.astype(np.float32) - 3) * np.float32(0.1))


@pytest.mark.parametrize("name", ["offset", "bias", "image_min"])
def test_an_offset_of_which_nobody_knows_the_place_is_refused(name: str) -> None:
    tensors = {"image": WHOLE, "scale": np.array(0.1, np.float32)}
    save_file(tensors | {name: np.array(3.0, np.float32)}, "a.safetensors")
    with open_features("a.safetensors") as file, pytest.raises(FeatureFileError) as refused:
        choose_tensor(file, "image", None)
    assert f"a.safetensors[{name}]: lies beside" in str(refused.value)
    assert "store it as zero_point" in str(refused.value)


@pytest.mark.parametrize("shape", [(6,), (48,), (6, 1), (1, 48), ()])
def test_scales_a_row_and_a_channel(shape: tuple[int, ...]) -> None:
    scale = RNG.uniform(0.1, 1, shape).astype(np.float32)
    save_file({"image": WHOLE, "scale": scale}, "a.safetensors")
    with open_features("a.safetensors") as file:
        values = choose_tensor(file, "image", None).read()
    factor = scale[:, None] if shape == (6,) else scale
    np.testing.assert_array_equal(values, WHOLE.astype(np.float32) * factor)
