"""A format stands in one place: its module, and one line of the table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusecli
from fusecli.errors import FeatureFileError
from fusecli.features.file import open_features
from fusecli.features.formats.table import FORMATS, READABLE_ENDINGS, WRITABLE_ENDINGS, load_format

PACKAGE = Path(fusecli.__file__).parent

# One array as lines of text, with its shape in the first.
TOY = '''
"""Arrays as text, for a test."""

from __future__ import annotations

import os
from io import BufferedReader

import numpy as np

from fusecli.features.formats.base import FileContents
from fusecli.features.tensor import InMemory, StoredTensor


class ToyFormat:
    called = "a .toy file"
    has_keys = False
    dtypes = ("float32",)

    def recognises(self, handle: BufferedReader) -> bool:
        return handle.read(4) == b"TOY "

    def open(self, handle: BufferedReader, file: str) -> FileContents:
        word, *sizes = handle.readline().split()
        assert word == b"TOY"
        shape = tuple(map(int, sizes))
        array = np.array(handle.read().split(), np.float32).reshape(shape)
        tensor = StoredTensor(file, None, shape, "float32", array.nbytes, InMemory(array))
        return FileContents({"": tensor})

    def sink(self, file, folder, contents):
        return ToySink(file, contents)

    def encoder(self, dtype, metadata):
        def encode(tensors):
            (tensor,) = tensors.values()
            return [start(tensor.shape), lines(tensor)]

        return encode


FORMAT = ToyFormat()


class ToySink:
    def __init__(self, file, contents):
        self._file, self._contents = file, contents

    def begin(self):
        (shape,) = self._contents.shapes.values()
        self._file.write(start(shape))

    def write(self, index, data):
        self._file.write(lines(np.frombuffer(data, np.float32)))

    def finish(self):
        pass

    def discard(self):
        pass


def start(shape):
    return ("TOY " + " ".join(map(str, shape)) + "\\n").encode()


def lines(array):
    return "".join(f"{value:.9g}\\n" for value in array.reshape(-1)).encode()
'''


def with_toy_format(folder: Path) -> Path:
    """A copy of the package to which a format is added: one new file, one line in the table."""
    copy = folder / "copy"
    shutil.copytree(PACKAGE, copy / "fusecli", ignore=shutil.ignore_patterns("__pycache__"))
    formats = copy / "fusecli" / "features" / "formats"
    (formats / "toy.py").write_text(TOY)
    table = (formats / "table.py").read_text()
    line = '    Entry("npy", (".npy",), writable=True),\n'
    assert table.count(line) == 1
    new = '    Entry("toy", (".toy",), writable=True),\n'
    (formats / "table.py").write_text(table.replace(line, line + new))
    return copy


def toy(path: Path, array: np.ndarray) -> None:
    start = "TOY " + " ".join(map(str, array.shape)) + "\n"
    path.write_text(start + "".join(f"{value:.9g}\n" for value in array.reshape(-1)))


def from_toy(path: Path) -> np.ndarray:
    head, *lines = path.read_text().splitlines()
    return np.array(lines, np.float32).reshape(tuple(map(int, head.split()[1:])))


@pytest.mark.slow
def test_a_new_format_is_one_file_and_one_line(tmp_path: Path) -> None:
    copy = with_toy_format(tmp_path)
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for side, tokens in (("image", 3), ("text", 8)):
            (data / side).mkdir(parents=True, exist_ok=True)
            array = rng.normal(size=(tokens, 16)).astype(np.float32)
            np.save(data / side / f"{name}.npy", array)
            toy(data / side / f"{name}.toy", array)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fusecli", *arguments]
        env = os.environ | {"PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=data, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    run("fuse", "image/a.npy", "text/a.npy", "-o", "a.npy")
    run("fuse", "image/a.toy", "text/a.toy", "-o", "a.toy")
    np.testing.assert_array_equal(from_toy(data / "a.toy"), np.load(data / "a.npy"))
    described = json.loads(run("inspect", "image/a.toy", "--json").stdout)
    assert described[0]["tensors"][0]["shape"] == [3, 16]
    (data / "pairs.csv").write_text(
        "id,image,text,output\na,image/a.npy,text/a.npy,a.npy\nb,image/b.npy,text/b.npy,b.npy\n"
    )
    run("batch", "--manifest", "pairs.csv", "-o", "from_npy")
    for side in ("image", "text"):
        for name in ("a", "b"):
            os.unlink(data / side / f"{name}.npy")
    (data / "pairs.csv").write_text(
        "id,image,text,output\na,image/a.toy,text/a.toy,a.toy\nb,image/b.toy,text/b.toy,b.npy\n"
    )
    run("batch", "--manifest", "pairs.csv", "-o", "out")
    np.testing.assert_array_equal(
        from_toy(data / "out" / "a.toy"), np.load(data / "from_npy" / "a.npy")
    )
    assert np.load(data / "out" / "b.npy").shape == (8, 16)
    run("batch", "image", "text", "-o", "folders")
    for name in ("a.npy", "b.npy"):
        np.testing.assert_array_equal(
            np.load(data / "folders" / name), np.load(data / "from_npy" / name)
        )


def test_endings_are_those_of_the_formats() -> None:
    assert READABLE_ENDINGS[:5] == (".npy", ".npz", ".safetensors", ".pt", ".pth")
    assert WRITABLE_ENDINGS == (".npy", ".npz", ".safetensors")
    assert len({ending for entry in FORMATS for ending in entry.endings}) == len(READABLE_ENDINGS)


def test_formats_that_the_table_calls_writable_are_those_with_a_writer() -> None:
    for entry in FORMATS:
        assert hasattr(load_format(entry.module), "sink") == entry.writable, entry.module


def test_one_format_knows_the_layout_of_safetensors_files() -> None:
    for mark in ("data_offsets", '"BF16"'):
        knowing = [path for path in PACKAGE.rglob("*.py") if mark in path.read_text()]
        formats = PACKAGE / "features" / "formats"
        known = {formats / "safetensors.py", formats / "safetensors_header.py"}
        assert formats / "safetensors_header.py" in knowing, mark
        assert known.issuperset(knowing), mark


def test_header_above_the_bound_is_refused_unless_the_user_raises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, limit = tmp_path / "h.safetensors", 32 << 20
    for length in (limit, limit + 1, 90 << 20):
        with open(path, "wb") as file:
            file.write(length.to_bytes(8, "little") + b"{")
            file.truncate(8 + length)  # zeros, which are no header
        said = f"its header is {length:,} bytes long, more than {limit:,}.*FUSECLI_READ_LIMIT="
        with pytest.raises(FeatureFileError, match=said if length > limit else "damaged"):
            open_features(str(path))
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).ljust(1500)
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\x07")
    for limit_said, is_read in (("1K", False), ("2K", True)):
        monkeypatch.setenv("FUSECLI_READ_LIMIT", limit_said)
        if is_read:
            with open_features(str(path)) as opened:
                assert opened.tensors["a"].read().tolist() == [7]
        else:
            with pytest.raises(FeatureFileError, match="FUSECLI_READ_LIMIT="):
                open_features(str(path))
