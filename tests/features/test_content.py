"""A file that is something else than its name says: what it is, and advice that gives features."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fusecli.errors import FeatureFileError
from fusecli.features.file import open_features
from fusecli.features.file_cache import Opener
from fusecli.features.pair_inputs import ReadOptions
from fusecli.pairs.pair import Pair, Place
from fusecli.pairs.reader import PairReader

X = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"a" * 64)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def npy(array: np.ndarray = X) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def archive(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(name, npy())
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("x"), io.BytesIO())
    return file.getvalue()


def pt(old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(torch.from_numpy(X), file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def safetensors() -> bytes:
    save_file({"image": X}, "made.safetensors")
    return Path("made.safetensors").read_bytes()


def refusal(name: str) -> str:
    with pytest.raises(FeatureFileError) as refused:
        open_features(name).close()
    return str(refused.value)


def follow(message: str) -> None:
    """Run the Python that a message advises."""
    snippet = re.search(r'python -c "(.*)"$', message)
    assert snippet is not None, message
    exec(snippet[1], {})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.npy", LFS, "x.npy: is not a .npy file but a Git LFS pointer: .*git lfs pull"),
        ("x.npz", LFS, "is not a .npz archive but a Git LFS pointer"),
        ("x.pt", LFS, "is not a readable .pt file but a Git LFS pointer"),
        ("x.safetensors", LFS, "is not a sound .safetensors file but a Git LFS pointer"),
        ("x.npy", b"/annex/objects/SHA256E-s12--abc.npy\n", "a git-annex pointer"),
        ("x.npy", b"\n<!DOCTYPE html><html></html>", "an HTML page.*: download"),
        ("x.pt", b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document.*: download"),
        ("x.npy", gzip.compress(npy()), "packed by gzip: .*gzip -dc x.npy > NEW.npy$"),
        ("x.npy.gz", gzip.compress(npy()), "found .gz: it is packed by gzip.* > NEW.npy$"),
        ("x.safetensors", lzma.compress(npy()), "packed by xz: .* > NEW.safetensors$"),
        ("x.npz", bz2.compress(npy()), "packed by bzip2: .* > NEW.npz$"),
        ("x.npy", b"\x28\xb5\x2f\xfd" + bytes(200), "packed by zstd"),
        ("x.safetensors", b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file: .*h5py.File"),
        ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "found .h5: it is an HDF5 file"),
        ("x.npy", b"\x89PNG\r\n\x1a\n" + bytes(64), r"a picture \(PNG\): give what an encoder"),
        ("x.npy", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(64), r"a picture \(WebP\)"),
        ("x.npy", tar(), "a tar archive"),
        ("x.npy", archive("features.bin"), "a zip archive of other files: unpack it"),
        ("x.npy", archive("a.npy"), "is not a .npy file but a zip archive .*: name it x.npz"),
        ("x.pt", archive("a.npy"), "but a zip archive .*: name it x.npz"),
        ("x.npz", npy(), "but a .npy file by its content: name it x.npy"),
        ("x.safetensors", npy(), "but a .npy file by its content: name it x.npy"),
        ("x.bin", npy(), "found .bin: it is a .npy file by its content: name it x.npy"),
        ("x", npy(), "found no ending: it is a .npy file by its content: name it x.npy"),
        ("x.npz", pt(), r"but a zip archive \(.pt by its content\): name it x.pt$"),
        ("x.npy", pt(), r"but a zip archive \(.pt by its content\): name it x.pt$"),
        ("x.npy", pt(old=True), "but a .pt file by its content: name it x.pt"),
        ("x.npy", b"\x80\x04\x95" + bytes(99), "a pickle, and pickles are never loaded"),
        ("x.npy", json.dumps(X.tolist()).encode(), "JSON text"),
        ("x.npy", bytes(4096), "zeros from its first byte on.*: make it again"),
    ],
)
def test_the_first_bytes_say_what_a_file_really_is(name: str, content: bytes, says: str) -> None:
    Path(name).write_bytes(content)
    message = refusal(name)
    assert re.search(says, message), message
    assert "\n" not in message


def test_a_batch_says_the_same() -> None:
    Path("x.npy").write_bytes(LFS + bytes(99))
    with ExitStack() as stack, pytest.raises(FeatureFileError, match="Git LFS pointer"):
        Opener().open("x.npy", None, stack)


def test_safetensors_under_another_name() -> None:
    Path("x.npz").write_bytes(safetensors())
    assert refusal("x.npz").endswith("file by its content: name it x.safetensors")


def test_damage_is_still_called_damage() -> None:
    Path("x.npz").write_bytes(archive("a.npy")[:-30])
    assert "damaged or cut short" in refusal("x.npz")
    Path("x.npy").write_bytes(npy()[:-30])
    assert "is cut short" in refusal("x.npy")


@pytest.mark.parametrize("mark", [",", ";", "\t", " "])
def test_a_table_of_numbers_becomes_features(mark: str) -> None:
    np.savetxt("x.npy", X, delimiter=mark)
    follow(refusal("x.npy"))
    with open_features("NEW.npy") as file:
        np.testing.assert_allclose(file.tensors[""].read(), X, rtol=1e-6)


# ---------------------------------------------------------------------------- headers of .npy


def with_descr(descr: str, numbers: bytes) -> None:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (6, 32), }}".ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    Path("x.npy").write_bytes(start + text.encode() + numbers)


def numbers_refusal(name: str) -> str:
    with open_features(name) as file:
        (tensor,) = file.tensors.values()
        with pytest.raises(FeatureFileError) as refused:
            tensor.read()
    return str(refused.value)


@pytest.mark.parametrize(
    ("descr", "type"),
    [
        ("'bfloat16'", "bfloat16"),
        ("'<bfloat16'", "bfloat16"),
        ("'float8_e4m3fn'", "float8_e4m3fn"),
        ("'float8_e5m2'", "float8_e5m2"),
        ("'<f1'", "float8_e5m2"),
    ],
)
def test_types_of_ml_dtypes_are_read_by_name(descr: str, type: str) -> None:
    stored = X.astype(getattr(ml_dtypes, type))
    with_descr(descr, stored.tobytes())
    with open_features("x.npy") as file:
        tensor = file.tensors[""]
        assert tensor.dtype == type
        np.testing.assert_array_equal(tensor.read(), stored.astype(np.float32))


def test_what_np_save_makes_of_float8_e5m2_is_read() -> None:
    stored = X.astype(ml_dtypes.float8_e5m2)
    np.save("x.npy", stored)
    reader = PairReader(ReadOptions())
    read = reader.read(Pair("x", Place("x.npy", None), Place("x.npy", None), None, None, None))
    np.testing.assert_array_equal(read.image, stored.astype(np.float32))
    np.testing.assert_array_equal(read.text, stored.astype(np.float32))


@pytest.mark.parametrize("descr", ["'<g2'", "'float8_of_a_kind'", "'complex_float16'"])
def test_a_type_that_numpy_does_not_know_is_named(descr: str) -> None:
    with_descr(descr, bytes(6 * 32 * 2))
    message = refusal("x.npy")
    assert f"numbers of a type that numpy does not know, {descr}: convert" in message


def test_a_header_without_a_type_is_damaged() -> None:
    with_descr("()", b"")
    assert "damaged .npy header: descr names no type" in refusal("x.npy")


def test_one_raw_byte_a_number_is_not_called_bfloat16() -> None:
    np.save("x.npy", X.astype(ml_dtypes.float8_e4m3fn))
    message = numbers_refusal("x.npy")
    assert "(|V1)" in message
    assert "float8_e4m3fn" in message
    assert "bfloat16" not in message


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_raw_bytes_of_bfloat16_become_float32(ending: str) -> None:
    stored = X.astype(ml_dtypes.bfloat16)
    np.save("x.npy", stored) if ending == ".npy" else np.savez("x.npz", image=stored)
    follow(numbers_refusal(f"x{ending}"))
    np.testing.assert_array_equal(np.load("NEW.npy"), stored.astype(np.float32))


def test_a_pickled_dict_becomes_named_arrays() -> None:
    np.save("x.npy", np.array({"image": X, "n": 3}, dtype=object), allow_pickle=True)
    message = numbers_refusal("x.npy")
    assert "if you trust it" in message
    follow(message)
    with open_features("NEW.npz") as file:
        np.testing.assert_array_equal(file.tensors["image"].read(), X)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_pickled_arrays_of_several_lengths_become_a_stack_with_lengths(ending: str) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [X[:3], X[:5]]
    if ending == ".npy":
        np.save("x.npy", ragged, allow_pickle=True)
    else:
        np.savez("x.npz", image=ragged)
    follow(numbers_refusal(f"x{ending}"))
    np.save("t.npy", X)
    manifest_pair = Pair("x", Place("NEW.npz", None, 0), Place("t.npy", None), None, None, None)
    read = PairReader(ReadOptions(text_axes="TD")).read(manifest_pair)
    np.testing.assert_array_equal(read.image, np.concatenate([X[:3], np.zeros((2, 32))]))
    assert read.image_mask is not None
    assert read.image_mask.tolist() == [True] * 3 + [False] * 2
