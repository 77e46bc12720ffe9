"""What is written, what is not touched, and the pieces that write."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusecli.errors import OutputError
from fusecli.features.atomic import StagedFile
from fusecli.features.file import open_features
from fusecli.features.formats.base import OutputContents
from fusecli.features.writer import FeatureWriter
from tests.conftest import without_privileges
from tests.features.written import ENDINGS, IMAGE, RNG, TEXT, everything


def fused(name: str) -> np.ndarray:
    """The result in a file of any format, as float32."""
    with open_features(name) as file:
        (stored,) = file.tensors.values()
        return stored.read()


@pytest.mark.parametrize("ending", ENDINGS)
def test_result_is_the_same_in_every_format(inputs: Path, cli: Callable, ending: str) -> None:
    done = cli("fuse", "image.npy", "text.npy", "-o", f"out{ending}")
    assert (done.code, done.out) == (0, f"out{ending}\n")
    cli("fuse", "image.npy", "text.npy", "-o", "plain.npy")
    expected = np.load("plain.npy")
    assert expected.shape == (5, 8)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(fused(f"out{ending}"), expected)


def test_other_libraries_read_the_results(inputs: Path, cli: Callable) -> None:
    for ending in ENDINGS:
        cli("fuse", "image.npy", "text.npy", "-o", f"out{ending}")
    expected = np.load("out.npy")
    with np.load("out.npz") as archive:
        assert archive.files == ["fused"]
        np.testing.assert_array_equal(archive["fused"], expected)
    tensors = load_file("out.safetensors")
    assert list(tensors) == ["fused"]
    np.testing.assert_array_equal(tensors["fused"].numpy(), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text.npy", "text.fused.npy"),
        ("sub/words.npy", "words.fused.npy"),
        ("text.safetensors", "text.fused.safetensors"),
        ("text.npz", "text.fused.npy"),
    ],
)
def test_default_name_is_the_texts_in_this_folder(
    inputs: Path, cli: Callable, text: str, expected: str
) -> None:
    os.mkdir("sub")
    np.save("sub/words.npy", TEXT)
    np.savez("text.npz", text=TEXT)
    save_file({"text": torch.from_numpy(TEXT)}, "text.safetensors")
    before = set(everything(inputs))
    assert cli("fuse", "image.npy", text).out == f"{expected}\n"
    assert set(everything(inputs)) - before == {str(inputs / expected)}


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_same_options_give_the_same_bytes(
    inputs: Path, cli: Callable, ending: str, engine: str
) -> None:
    contents = []
    for _ in range(2):
        done = cli(
            *("fuse", "image.npy", "text.npy", "-o", f"out{ending}", "--engine", engine),
            *("--force", "--report", "report.json"),
        )
        assert done.code == 0
        contents.append((Path(f"out{ending}").read_bytes(), Path("report.json").read_bytes()))
    assert contents[0] == contents[1]


def test_chunks_do_not_show_in_the_result(inputs: Path, cli: Callable) -> None:
    np.save("images.npy", RNG.normal(size=(40, 3, 8)).astype(np.float32))
    np.save("texts.npy", RNG.normal(size=(40, 5, 8)).astype(np.float32))
    for ending in ENDINGS:
        args = ("fuse", "images.npy", "texts.npy", "--force")
        cli(*args, "-o", f"one{ending}")
        cli(*args, "-o", f"many{ending}", "--max-memory", "4K")
        np.testing.assert_allclose(fused(f"many{ending}"), fused(f"one{ending}"), atol=1e-6)
        assert os.path.getsize(f"many{ending}") == os.path.getsize(f"one{ending}")


def test_float16_result_is_rounded_as_numpy_rounds(inputs: Path, cli: Callable) -> None:
    cli("fuse", "image.npy", "text.npy", "-o", "full.npy")
    cli("fuse", "image.npy", "text.npy", "-o", "half.npy", "--out-dtype", "float16")
    half = np.load("half.npy")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, np.load("full.npy").astype(np.float16))


def test_bfloat16_result_is_rounded_as_torch_rounds(inputs: Path, cli: Callable) -> None:
    np.save("text.npy", RNG.normal(size=(500, 8)).astype(np.float32))
    cli("fuse", "image.npy", "text.npy", "-o", "full.npy")
    done = cli(
        *("fuse", "image.npy", "text.npy", "-o", "brief.safetensors"),
        *("--out-dtype", "bfloat16", "--json"),
    )
    brief = load_file("brief.safetensors")["fused"]
    assert brief.dtype == torch.bfloat16
    assert torch.equal(brief, torch.from_numpy(np.load("full.npy")).to(torch.bfloat16))
    report = json.loads(done.out)["output"]
    assert (report["dtype"], report["shape"], report["bytes"]) == ("bfloat16", [500, 8], 8000)


@pytest.mark.parametrize("ending", ENDINGS)
def test_float16_that_would_overflow_is_refused(inputs: Path, cli: Callable, ending: str) -> None:
    np.save("image.npy", IMAGE * 1e7)
    before = everything(inputs)
    args = ("fuse", "image.npy", "text.npy", "-o", f"out{ending}")
    done = cli(*args, "--out-dtype", "float16", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: out{ending}: fused values reach ")
    assert "65504" in done.err
    assert "--out-dtype float32" in done.err
    assert everything(inputs) == before
    assert cli(*args).code == 0


@pytest.mark.parametrize("ending", ENDINGS)
def test_existing_file_is_replaced_only_with_force(
    inputs: Path, cli: Callable, ending: str
) -> None:
    Path(f"out{ending}").write_bytes(b"precious")
    before = everything(inputs)
    refused = cli("fuse", "image.npy", "text.npy", "-o", f"out{ending}")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == f"error: out{ending}: exists already: say --force to replace it\n"
    assert everything(inputs) == before
    assert cli("fuse", "image.npy", "text.npy", "-o", f"out{ending}", "-f").code == 0
    assert fused(f"out{ending}").shape == (5, 8)


def test_existing_report_is_replaced_only_with_force(inputs: Path, cli: Callable) -> None:
    Path("report.json").write_text("precious")
    before = everything(inputs)
    args = ("fuse", "image.npy", "text.npy", "-o", "out.npy", "--report", "report.json")
    refused = cli(*args)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: report.json: exists already")
    assert everything(inputs) == before
    assert cli(*args, "--force").code == 0
    assert json.loads(Path("report.json").read_text())["output"]["file"] == "out.npy"


def same_path() -> str:
    return "text.npy"


def roundabout_path() -> str:
    os.mkdir("sub")
    return "sub/../text.npy"


def symbolic_link() -> str:
    os.symlink("text.npy", "out.npy")
    return "out.npy"


def hard_link() -> str:
    os.link("text.npy", "out.npy")
    return "out.npy"


def link_of_a_folder() -> str:
    os.symlink(".", "sub")
    return "sub/text.npy"


@pytest.mark.parametrize(
    "make", [same_path, roundabout_path, symbolic_link, hard_link, link_of_a_folder]
)
def test_output_that_is_an_input_is_refused_even_with_force(
    inputs: Path, cli: Callable, make: Callable[[], str]
) -> None:
    output = make()
    before = everything(inputs)
    done = cli("fuse", "image.npy", "text.npy", "-o", output, "--force")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {output}: is also an input")
    assert done.err.count("\n") == 1
    assert everything(inputs) == before


@pytest.mark.parametrize("option", ["--weights", "--image-mask", "--text-mask"])
def test_output_that_is_another_input_is_refused(inputs: Path, cli: Callable, option: str) -> None:
    cli("init", "-o", "other.safetensors", "--dim", "8")
    before = everything(inputs)
    args = ("fuse", "image.npy", "text.npy", option, "other.safetensors")
    done = cli(*args, "-o", "other.safetensors", "--force")
    assert done.code == 1
    assert done.err.startswith("error: other.safetensors: is also an input")
    assert everything(inputs) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_report_that_is_an_input_is_refused(inputs: Path, cli: Callable, link: Callable) -> None:
    link("text.npy", "report.json")
    before = everything(inputs)
    args = ("fuse", "image.npy", "text.npy", "-o", "out.npy", "--report", "report.json")
    done = cli(*args, "--force")
    assert done.code == 1
    assert done.err.startswith("error: report.json: is also an input")
    assert everything(inputs) == before


def test_report_that_is_the_output_is_refused(inputs: Path, cli: Callable) -> None:
    os.symlink("out.npy", "report.json")
    before = everything(inputs)
    args = ("fuse", "image.npy", "text.npy", "-o", "out.npy", "--report", "report.json")
    done = cli(*args, "--force")
    assert done.code == 2
    assert done.err == "error: out.npy: is both the output and the report\n"
    assert everything(inputs) == before


def test_symbolic_link_stays_a_link_and_its_target_is_replaced(inputs: Path, cli: Callable) -> None:
    os.mkdir("store")
    Path("store/result.npy").write_text("old")
    os.symlink("store/result.npy", "out.npy")
    assert cli("fuse", "image.npy", "text.npy", "-o", "out.npy").code == 1
    assert cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "--force").code == 0
    assert os.readlink("out.npy") == "store/result.npy"
    assert np.load("store/result.npy").shape == (5, 8)
    assert os.listdir("store") == ["result.npy"]


def test_link_to_nothing_is_filled_with_force(inputs: Path, cli: Callable) -> None:
    os.symlink("gone.npy", "out.npy")
    assert cli("fuse", "image.npy", "text.npy", "-o", "out.npy").code == 1
    assert cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "--force").code == 0
    assert os.readlink("out.npy") == "gone.npy"
    assert np.load("gone.npy").shape == (5, 8)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("gone/out.npy", "does not exist"),
        ("text.npy/out.npy", "does not exist|is not a folder"),
        ("sub.npy", "is a directory"),
        ("pipe.npy", "is a device or pipe"),
        ("x" * 300 + ".npy", "cannot be written: File name too long"),
        ("/proc/fusecli.npy", "cannot be written"),
    ],
)
def test_place_where_nothing_can_be_written_is_refused(
    inputs: Path, cli: Callable, output: str, says: str
) -> None:
    os.mkdir("sub.npy")
    os.mkfifo("pipe.npy")
    before = sorted(os.listdir("."))
    done = cli("fuse", "image.npy", "text.npy", "-o", output, "--force", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {output}: ")
    assert done.err.count("\n") == 1
    assert re.search(says, done.err)
    assert sorted(os.listdir(".")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="sets aside root's privileges with prctl")
def test_folder_that_may_not_be_written_is_refused(inputs: Path, program: Callable) -> None:
    os.mkdir("sub")
    os.chmod("sub", 0o500)
    args = ("fuse", "image.npy", "text.npy", "-o", "sub/out.npy", "--quiet")
    done = program(*args, preexec_fn=without_privileges)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: sub/out.npy: cannot be written: Permission denied\n"
    assert os.listdir("sub") == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_file_mode_honours_the_umask(inputs: Path, cli: Callable, mask: int) -> None:
    before = os.umask(mask)
    try:
        for ending in ENDINGS:
            cli("fuse", "image.npy", "text.npy", "-o", f"out{ending}")
        cli("fuse", "image.npy", "text.npy", "-o", "a.npy", "--report", "report.json")
        cli("init", "-o", "weights.safetensors", "--dim", "8")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    for name in [*(f"out{ending}" for ending in ENDINGS), "report.json", "weights.safetensors"]:
        assert os.stat(name).st_mode & 0o777 == 0o666 & ~mask


def test_long_name_is_written(inputs: Path, cli: Callable) -> None:
    # 255 bytes is what file systems allow; a cat takes four.
    for name in ("x" * 251 + ".npy", "\N{CAT FACE}" * 62 + ".npy"):
        done = cli("fuse", "image.npy", "text.npy", "-o", name)
        assert "error" not in done.err
        assert np.load(name).shape == (5, 8)


def test_staged_file_is_there_only_when_published(folder: Path) -> None:
    with StagedFile("a.bin") as staged:
        staged.begin()
        staged.write(b"one")
        staged.write(memoryview(b"two"))
        assert not os.path.exists("a.bin")
        staged.publish()
        assert Path("a.bin").read_bytes() == b"onetwo"
    assert os.listdir() == ["a.bin"]


def test_staged_file_that_is_not_published_leaves_nothing(folder: Path) -> None:
    with StagedFile("a.bin") as staged:
        staged.begin()
        staged.write(b"one")
    assert os.listdir() == []


def test_two_runs_with_one_output_do_not_mix_their_bytes(folder: Path) -> None:
    with StagedFile("a.bin") as one, StagedFile("a.bin") as two:
        one.begin()
        two.begin()
        one.write(b"1" * 100_000)
        two.write(b"2" * 100_000)
        one.publish()
        two.publish()
    assert Path("a.bin").read_bytes() == b"2" * 100_000
    assert os.listdir() == ["a.bin"]


def holding(*shape: int) -> OutputContents:
    return OutputContents({"fused": shape}, "float32", {})


@pytest.mark.parametrize("ending", ENDINGS)
def test_writer_left_by_an_error_leaves_nothing(folder: Path, ending: str) -> None:
    rows = np.ones((2, 4), np.float32)
    writer = FeatureWriter(f"a{ending}", holding(4, 4))
    with contextlib.suppress(KeyError), writer:
        writer.begin()
        writer.append(rows)
        raise KeyError
    assert os.listdir() == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_writer_takes_rows_in_any_layout(folder: Path, ending: str) -> None:
    rows = RNG.normal(size=(4, 6)).astype(np.float32)
    with FeatureWriter(f"a{ending}", holding(6, 4)) as writer:
        writer.begin()
        writer.append(rows.T[:2])
        writer.append(rows.T[2:])
        writer.finish()
        writer.publish()
    np.testing.assert_array_equal(fused(f"a{ending}"), rows.T)


def test_writer_refuses_a_folder_that_is_gone(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"gone/a\.npy: cannot be written"):
        FeatureWriter("gone/a.npy", holding(1, 1)).begin()
