"""PyTorch's files are read as a description: without torch, without code, within bounds."""

from __future__ import annotations

import argparse
import io
import pickle
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fusecli.errors import FeatureFileError
from fusecli.features.file import open_features

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(3, 8)).astype(np.float32)


def tensor() -> torch.Tensor:
    return torch.from_numpy(TOKENS)


def keys_and_numbers(path: Path) -> dict[str, np.ndarray]:
    with open_features(str(path)) as file:
        return {key: stored.read() for key, stored in file.tensors.items()}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([tensor(), tensor()], ["0", "1"]),
        ((tensor(),), ["0"]),
        ({7: tensor(), 8: tensor()}, ["7", "8"]),
        ({"out": {"last_hidden_state": tensor()}}, ["out.last_hidden_state"]),
        ({"a": [{"b": tensor()}]}, ["a.0.b"]),
        ({"state_dict": {"w": tensor()}, "ema": {"w": tensor()}, "epoch": 3}, ["w", "ema.w"]),
        ({"args": argparse.Namespace(lr=0.1), "image": tensor()}, ["image"]),
        ({"scale": np.float32(2), "image": tensor()}, ["image"]),
        ({"image": torch.nn.Parameter(tensor())}, ["image"]),
    ],
    ids=["list", "tuple", "numbers", "nested", "deep", "state dict", "namespace", "numpy", "param"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_found_wherever_they_are(tmp_path, value, expected, zipped) -> None:
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = keys_and_numbers(tmp_path / "a.pt")
    assert sorted(found) == sorted(expected)
    for numbers in found.values():
        np.testing.assert_array_equal(numbers, TOKENS)


def test_ckpt_is_read_as_pt(tmp_path: Path) -> None:
    torch.save({"state_dict": {"image": tensor()}}, tmp_path / "a.ckpt")
    np.testing.assert_array_equal(keys_and_numbers(tmp_path / "a.ckpt")["image"], TOKENS)


def unusual(name: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.ones(2, 3), torch.ones(1, 3)]
        make: dict[str, Callable[[], torch.Tensor]] = {
            "nested": lambda: torch.nested.nested_tensor(parts),
            "jagged": lambda: torch.nested.nested_tensor(parts, layout=torch.jagged),
            "sparse": lambda: tensor().to_sparse(),
            "rows": lambda: tensor().to_sparse_csr(),
            "quantized": lambda: torch.quantize_per_tensor(tensor(), 0.1, 0, torch.qint8),
            "meta": lambda: torch.empty(3, 8, device="meta"),
            "complex": lambda: torch.ones(3, 8, dtype=torch.complex64),
        }
        return make[name]()


UNUSUAL = ["nested", "jagged", "sparse", "rows", "quantized", "meta", "complex"]


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("zipped", [True, False])
def test_unusual_tensor_is_named_when_asked_for_and_harms_no_other(tmp_path, name, zipped) -> None:
    if name in ("nested", "jagged") and not zipped:
        pytest.skip("torch cannot save it in the old format")
    value = {"image": tensor(), name: unusual(name)}
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    said = {"jagged": "nested", "rows": "sparse"}.get(name, name)
    with open_features(str(tmp_path / "a.pt")) as file:
        np.testing.assert_array_equal(file.tensors["image"].read(), TOKENS)
        with pytest.raises(FeatureFileError, match=rf"a\.pt\[{name}\].* {said}"):
            file.tensors[name].read()


@pytest.mark.slow
def test_views_are_copied_only_when_asked_for(tmp_path: Path) -> None:
    # A thousand expanded views of half a megabyte each, in a file of half a megabyte.
    rows = torch.zeros(1 << 17).reshape(1, -1)
    torch.save({f"v{i}": rows.expand(1, 1 << 17) for i in range(500)}, tmp_path / "a.pt")
    wide = {f"w{i}": torch.zeros(1).expand(1 << 10, 100) for i in range(500)}
    torch.save({"x": torch.zeros(1 << 17), **wide}, tmp_path / "b.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("a.pt", "b.pt"):
        with open_features(str(tmp_path / name)) as file:
            assert len(file.tensors) >= 500
    with open_features(str(tmp_path / "b.pt")) as file:
        assert file.tensors["w3"].raw().strides == (0, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_parts_of_views_are_those_of_the_tensor(tmp_path: Path) -> None:
    base = torch.from_numpy(RNG.normal(size=(4, 6, 8)).astype(np.float32))
    views = {
        "permuted": base.permute(1, 2, 0),
        "stepped": base[::2, 1::3],
        "expanded": base[:1].expand(3, 6, 8),
        "turned": base.transpose(0, 2),
    }
    torch.save(views, tmp_path / "a.pt")
    with open_features(str(tmp_path / "a.pt")) as file:
        for name, view in views.items():
            for axis in range(3):
                for start, stop in ((0, 1), (1, view.shape[axis]), (0, view.shape[axis]), (1, 1)):
                    part = file.tensors[name].part(axis, start, stop)
                    expected = view.narrow(axis, start, stop - start).numpy()
                    np.testing.assert_array_equal(part, expected)


def test_reading_a_torch_file_does_not_import_torch(tmp_path: Path) -> None:
    torch.save({"image": tensor()}, tmp_path / "a.pt")
    code = (
        "import sys; from fusecli.features.file import open_features\n"
        "with open_features('a.pt') as f: print(f.tensors['image'].read().sum())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(TOKENS.sum(), rel=1e-5)


def archive(pickled: bytes) -> bytes:
    """A file as torch.save writes it, with this pickle."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as target:
        target.writestr("a/data.pkl", pickled)
        target.writestr("a/version", b"3\n")
    return sink.getvalue()


def hash_bomb() -> bytes:
    """A dict whose key is nested tuples, each holding the one before twice: 2^60 steps to hash."""
    steps = b"\x80\x02}q\x00" + b"K\x01\x85q\x01"
    for number in range(1, 61):
        steps += b"0h" + bytes([number]) + b"h" + bytes([number]) + b"\x86q" + bytes([number + 1])
    return steps + b"K\x01s."


BOMBS = {
    "keys whose hash never ends": hash_bomb(),
    "a bytearray of any size": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "lists that double": b"\x80\x02]" + b"(" * 10 + b"2" * 1000 + b".",
    "bytes that are not there": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "code": pickle.dumps(print),
    "endless steps": b"\x80\x02" + b"]0" * 4_000_000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("zipped", [True, False])
def test_bomb_is_refused_within_bounds(tmp_path: Path, name: str, zipped: bool) -> None:
    (tmp_path / "a.pt").write_bytes(archive(BOMBS[name]) if zipped else BOMBS[name])
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "from fusecli.errors import FeatureFileError\n"
        "from fusecli.features.file import open_features\n"
        "try:\n"
        "    open_features('a.pt')\n"
        "except FeatureFileError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.pt: ")
    assert done.stdout.count("\n") == 1


def test_a_tensor_behind_the_end_of_its_storage_is_damage(tmp_path: Path) -> None:
    sink = io.BytesIO()
    torch.save(torch.zeros(4), sink)
    with zipfile.ZipFile(sink) as source, zipfile.ZipFile(tmp_path / "a.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\x04\x85") == 1
                data = data.replace(b"K\x04\x85", b"K\x05\x85")
            target.writestr(name, data)
    with pytest.raises(FeatureFileError, match="damaged"):
        open_features(str(tmp_path / "a.pt"))


def test_torchscript_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(FeatureFileError, match=r"TorchScript.*state_dict"):
        open_features(str(tmp_path / "a.pt"))


def test_a_pickle_of_many_lists_can_be_read_when_the_bound_is_raised(tmp_path, monkeypatch) -> None:
    torch.save({"image": tensor(), "ids": list(range(1000))}, tmp_path / "a.pt")
    monkeypatch.setenv("FUSECLI_READ_LIMIT", "10K")
    with pytest.raises(FeatureFileError, match="FUSECLI_READ_LIMIT"):
        open_features(str(tmp_path / "a.pt"))
    monkeypatch.setenv("FUSECLI_READ_LIMIT", "10M")
    np.testing.assert_array_equal(keys_and_numbers(tmp_path / "a.pt")["image"], TOKENS)
