"""Feature files: what is stored is what is read, whole or in part, in every type."""

from __future__ import annotations

import io
import json
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy_format
from safetensors.torch import save_file

from fusecli import FuseOptions, fuse_files
from fusecli.errors import FeatureFileError
from fusecli.features.dtypes import from_float32, to_float32
from fusecli.features.file import FeatureFile, open_features

# Small numbers that every type holds exactly, the signs and the zeros with them.
NUMBERS = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 16, 32, 64]])
NUMPY_TYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
TORCH_TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
]


def read(path: Path, key: str = "") -> np.ndarray:
    """All numbers of one tensor, which must come as float32."""
    with opened(path) as file:
        values = file.tensors[key].read()
    assert values.dtype == np.float32
    return values


def opened(path: Path) -> FeatureFile:
    return open_features(str(path))


def the_bits(values: np.ndarray) -> np.ndarray:
    """float32 as integers, so that NaN, the sign of zero and the last digit are compared."""
    return np.ascontiguousarray(values).view(np.uint32)


# ---------------------------------------------------------------------------------- .npy


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", NUMPY_TYPES)
def test_npy_of_every_type_and_layout_reads_as_stored(
    tmp_path: Path, kind: str, byte_order: str, order: str
) -> None:
    array = np.asarray(NUMBERS.astype(np.dtype(byte_order + kind)), order=order)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), array.astype(np.float32))


def test_npy_negative_and_fractional_numbers_keep_sign_and_digits(tmp_path: Path) -> None:
    array = np.array([[-1.5, 2.0**-24, -0.0, 65504.0]], np.float16)
    np.save(tmp_path / "a.npy", array)
    assert (the_bits(read(tmp_path / "a.npy")) == the_bits(array.astype(np.float32))).all()


def test_npy_float64_is_rounded_to_the_nearest_float32(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(50, 20))
    np.save(tmp_path / "a.npy", array)
    assert (the_bits(read(tmp_path / "a.npy")) == the_bits(array.astype(np.float32))).all()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_header_of_every_version_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    array = NUMBERS.astype(np.float32)
    with open(tmp_path / "a.npy", "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about files that old versions cannot read
        npy_format.write_array(file, array, version)
    assert (tmp_path / "a.npy").read_bytes()[6:8] == bytes(version)
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0, 4), (2, 3, 4), (1, 2, 3, 4)])
def test_npy_of_every_rank_keeps_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    with opened(tmp_path / "a.npy") as file:
        stored = file.tensors[""]
        assert stored.shape == shape
        assert stored.nbytes == array.nbytes
        np.testing.assert_array_equal(stored.read(), array)


def test_npy_written_by_python_2_is_read(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "a.npy").write_bytes(data + NUMBERS.astype("<f4").tobytes())
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), NUMBERS)


def test_ending_in_capitals_is_the_same_format(tmp_path: Path) -> None:
    with open(tmp_path / "A.NPY", "wb") as file:
        np.save(file, NUMBERS.astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path / "A.NPY"), NUMBERS)


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS.astype(np.float32))
    before = (tmp_path / "a.npy").read_bytes()
    values = read(tmp_path / "a.npy")
    values += 1
    assert (tmp_path / "a.npy").read_bytes() == before


# ---------------------------------------------------------------------------------- .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f8", "|i1", "|b1"])
def test_npz_of_every_kind_reads_as_stored(tmp_path: Path, save, order: str, kind: str) -> None:
    array = np.asarray(NUMBERS.astype(kind), order=order)
    save(tmp_path / "a.npz", image=array, other=array[:1])
    np.testing.assert_array_equal(read(tmp_path / "a.npz", "image"), array.astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path / "a.npz", "other"), array[:1].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("words", np.array(["a", "dog"]), "strings"),
        ("objects", np.array([{}, None], object), "pickle"),
        ("when", np.array(["2024-01-01"], "M8[D]"), "dates"),
        ("waves", np.array([1j]), "complex"),
    ],
)
def test_npz_array_that_is_no_feature_fails_only_when_asked_for(
    tmp_path: Path, name: str, array: np.ndarray, said: str
) -> None:
    np.savez(tmp_path / "a.npz", image=NUMBERS.astype(np.float32), **{name: array})
    with opened(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file.tensors["image"].read(), NUMBERS)
        with pytest.raises(FeatureFileError, match=said) as refused:
            file.tensors[name].read()
    assert f"a.npz[{name}]" in str(refused.value)


def test_npz_is_read_in_any_order_and_twice(tmp_path: Path) -> None:
    a, b = (np.random.default_rng(s).normal(size=(300, 40)).astype(np.float32) for s in (0, 1))
    np.savez_compressed(tmp_path / "a.npz", a=a, b=b)
    with opened(tmp_path / "a.npz") as file:
        for key, array in (("b", b), ("a", a), ("b", b)):
            stored = file.tensors[key]
            np.testing.assert_array_equal(stored.part(0, 100, 200), array[100:200])
            np.testing.assert_array_equal(stored.part(0, 0, 50), array[:50])


# -------------------------------------------------------------------------- .safetensors


@pytest.mark.parametrize("dtype", TORCH_TYPES, ids=str)
def test_safetensors_of_every_type_equals_torchs_own_conversion(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensor = torch.from_numpy(NUMBERS).to(dtype)
    save_file({"image": tensor, "more": tensor[:1].clone()}, tmp_path / "a.safetensors")
    expected = tensor.to(torch.float32).numpy()
    np.testing.assert_array_equal(read(tmp_path / "a.safetensors", "image"), expected)
    np.testing.assert_array_equal(read(tmp_path / "a.safetensors", "more"), expected[:1])


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.float8_e5m2, "float8_e5m2"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
    ],
)
def test_every_bit_pattern_of_a_narrow_type_converts_as_in_torch(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    codes = np.arange(1 << (8 * dtype.itemsize)).astype(f"<u{dtype.itemsize}")
    tensor = torch.frombuffer(bytearray(codes.tobytes()), dtype=dtype)
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    with opened(tmp_path / "a.safetensors") as file:
        stored = file.tensors["x"]
        assert stored.dtype == name
        values = stored.read()
    found, expected = values, tensor.to(torch.float32).numpy()
    assert (np.isnan(found) == np.isnan(expected)).all()
    real = ~np.isnan(expected)
    assert real.sum() > len(codes) * 0.9
    assert (the_bits(found[real]) == the_bits(expected[real])).all()


def test_safetensors_metadata_is_read(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", {"made by": "a test"})
    with opened(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"made by": "a test"}


def test_safetensors_type_that_is_not_read_fails_only_when_asked_for(tmp_path: Path) -> None:
    save_file(
        {"image": torch.ones(2, 4), "wave": torch.ones(2, dtype=torch.complex64)},
        tmp_path / "a.safetensors",
    )
    with opened(tmp_path / "a.safetensors") as file:
        np.testing.assert_array_equal(file.tensors["image"].read(), np.ones((2, 4)))
        with pytest.raises(FeatureFileError, match=r"a\.safetensors\[wave\]: holds C64"):
            file.tensors["wave"].read()


# ------------------------------------------------------------------------------ .pt, .pth


@pytest.mark.parametrize("ending", [".pt", ".pth"])
@pytest.mark.parametrize("dtype", TORCH_TYPES, ids=str)
def test_bare_torch_tensor_of_every_type_is_read(
    tmp_path: Path, dtype: torch.dtype, ending: str
) -> None:
    tensor = torch.from_numpy(NUMBERS).to(dtype)
    torch.save(tensor, tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read(tmp_path / f"a{ending}"), tensor.to(torch.float32).numpy())


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model"])
def test_torch_dict_is_read_also_when_it_is_nested(tmp_path: Path, nest: str | None) -> None:
    state = {"image": torch.from_numpy(NUMBERS).float(), "epoch": 3, "text": torch.ones(2, 4)}
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "a.pt")
    with opened(tmp_path / "a.pt") as file:
        assert set(file.tensors) == {"image", "text"}
    np.testing.assert_array_equal(read(tmp_path / "a.pt", "image"), NUMBERS)


def test_state_dict_of_a_module_is_read_with_its_parameters(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", "weight")
    np.testing.assert_array_equal(found, module.weight.detach().numpy())


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[:, ::2],
        lambda t: t[1:],
        lambda t: t.requires_grad_(),
        lambda t: torch.imag(torch.complex(t, t).conj()),
    ],
    ids=["transposed", "strided", "offset", "with gradient", "negative view"],
)
def test_torch_view_is_read_as_it_looks(tmp_path: Path, view) -> None:
    tensor = view(torch.from_numpy(NUMBERS).float())
    torch.save(tensor, tmp_path / "a.pt")
    np.testing.assert_array_equal(read(tmp_path / "a.pt"), tensor.detach().resolve_neg().numpy())


def test_old_torch_format_without_a_zip_is_read(tmp_path: Path) -> None:
    tensor = torch.from_numpy(NUMBERS).float()
    torch.save(tensor, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read(tmp_path / "a.pt"), NUMBERS)


# ---------------------------------------------------------------------------------- parts


@pytest.mark.slow
@settings(deadline=None)  # the disk may take its time
@given(data=st.data())
def test_part_equals_the_slice_of_the_whole(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), "shape")
    kind = data.draw(st.sampled_from(["<f4", ">f4", "<f2", "<f8", ">i2", "|u1"]), "type")
    order = data.draw(st.sampled_from("CF"), "order")
    ending = data.draw(st.sampled_from([".npy", ".npz", ".safetensors", ".pt"]), "ending")
    axis = data.draw(st.integers(0, len(shape) - 1), "axis")
    start = data.draw(st.integers(0, shape[axis]), "start")
    stop = data.draw(st.integers(start, shape[axis]), "stop")
    array = np.asarray(np.arange(math.prod(shape)).reshape(shape).astype(kind), order=order)
    expected = np.take(array, range(start, stop), axis).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        _save(path, array)
        with opened(path) as file:
            stored = file.tensors["" if ending == ".npy" else "x"]
            assert stored.shape == shape
            part = stored.part(axis, start, stop)
            assert part.dtype == np.float32
            np.testing.assert_array_equal(part, expected)


def _save(path: Path, array: np.ndarray) -> None:
    """Write the array into a file of the kind that the path's ending names."""
    native = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")).copy())
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, x=array, y=array)
    elif path.suffix == ".safetensors":
        save_file({"x": native.contiguous()}, path)
    else:
        torch.save({"x": native}, path)


@pytest.mark.parametrize(
    "read_some",
    [lambda t: t.read(), lambda t: t.part(0, 3000, 4000), lambda t: t.part(1, 2, 3)],
    ids=["whole", "rows", "columns"],
)
def test_file_cut_short_after_it_was_opened_is_an_error(tmp_path: Path, read_some) -> None:
    np.save(tmp_path / "a.npy", np.ones((4000, 10), np.float32))
    with opened(tmp_path / "a.npy") as file:
        with open(tmp_path / "a.npy", "r+b") as same:
            same.truncate(5000)
        with pytest.raises(FeatureFileError, match="became shorter"):
            read_some(file.tensors[""])


def test_files_are_closed_when_the_job_is_done(folder: Path) -> None:
    for name in ("image.npy", "text.npy"):
        np.save(name, np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fuse_files(FuseOptions("image.npy", "text.npy"))
    assert [str(w.message) for w in seen if w.category is ResourceWarning] == []


# --------------------------------------------------------------------------------- rounding


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=40))
@example([0.0, -0.0, math.inf, -math.inf, math.nan, 3.4028234663852886e38, 1e-45])
@example([1.00390625, 1.01171875, -1.00390625, 1.0039063692092896, 1.003906130790710])
def test_rounding_to_bfloat16_equals_torchs_bit_for_bit(numbers: list[float]) -> None:
    _rounds_as_torch(np.array(numbers, np.float32))


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40))
@example([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0xFF7F8000])  # ties, ends
@example([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000, 0xFFC00000])  # NaNs
def test_rounding_any_bits_to_bfloat16_equals_torchs(patterns: list[int]) -> None:
    _rounds_as_torch(np.array(patterns, np.uint32).view(np.float32))


def _rounds_as_torch(values: np.ndarray) -> None:
    rounded = torch.from_numpy(values.copy()).to(torch.bfloat16)
    expected = rounded.view(torch.int16).numpy().view(np.uint16)
    found = from_float32(values, "bfloat16")
    assert found.dtype == np.uint16
    # Which NaN it is, its sign and payload, differs between torch's versions and kernels.
    nan = np.isnan(values)
    np.testing.assert_array_equal(np.isnan(to_float32(found, "bfloat16")), nan)
    np.testing.assert_array_equal(found[~nan], expected[~nan])


def test_rounding_reads_strided_numbers_in_their_order() -> None:
    values = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32).T
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(
        to_float32(from_float32(values, "bfloat16"), "bfloat16"), expected
    )


# ------------------------------------------------------------- headers are enough to know


def test_opening_a_large_file_reads_its_header_only(tmp_path: Path) -> None:
    shape = (1 << 20, 256, 1024)  # a terabyte of nothing
    sink = io.BytesIO()
    npy_format.write_array_header_1_0(
        sink, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(sink.getvalue())
        try:
            file.truncate(len(sink.getvalue()) + math.prod(shape) * 4)
        except OSError:
            pytest.skip("this file system holds no sparse files of a terabyte")
    with opened(tmp_path / "a.npy") as opened_file:
        stored = opened_file.tensors[""]
        assert stored.shape == shape
        row = stored.part(0, 1 << 19, (1 << 19) + 1)
    np.testing.assert_array_equal(row, np.zeros((1, 256, 1024)))


def test_large_safetensors_file_reads_its_header_only(tmp_path: Path) -> None:
    shape, nbytes = [1 << 20, 256, 1024], 1 << 40
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}
    header = json.dumps({"image": entry}).encode()
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + nbytes)
        except OSError:
            pytest.skip("this file system holds no sparse files of a terabyte")
    with opened(tmp_path / "a.safetensors") as opened_file:
        row = opened_file.tensors["image"].part(0, 1 << 19, (1 << 19) + 1)
    np.testing.assert_array_equal(row, np.zeros((1, 256, 1024)))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_file_that_was_not_copied_to_its_end_is_said_to_be_cut_short(tmp_path, ending, share):
    path = tmp_path / f"x{ending}"
    tensors = {"image": NUMBERS.astype(np.float32)}
    if ending == ".npy":
        np.save(path, tensors["image"])
    elif ending == ".npz":
        np.savez(path, **tensors)
    elif ending == ".pt":
        torch.save({"image": torch.from_numpy(tensors["image"])}, path)
    else:
        save_file({"image": torch.from_numpy(tensors["image"])}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    said = "damaged" if ending == ".npy" and share == 0.5 else "cut short"
    with pytest.raises(FeatureFileError, match=said), opened(path):
        pass
