"""Results appear under their name whole, or not at all, and nothing else changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusecli.errors import OutputError
from fusecli.features.atomic import StagedFile
from fusecli.features.file import open_features
from fusecli.features.writer import FeatureWriter
from tests.conftest import without_privileges

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(3, 8)).astype(np.float32)
TEXT = RNG.normal(size=(5, 8)).astype(np.float32)
ENDINGS = [".npy", ".npz", ".safetensors"]


@pytest.fixture
def inputs(folder: Path) -> Path:
    """A working directory with an image, a text and weights."""
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    return folder


def everything(folder: Path) -> dict[str, str]:
    """What is in a folder, hidden files too: names, and the hash of the contents or the link."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path)] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder"
    return found


def fused(name: str) -> np.ndarray:
    """The result in a file of any format, as float32."""
    with open_features(name) as file:
        (stored,) = file.tensors.values()
        return stored.read()


# ------------------------------------------------------------------------------ what is written


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


# --------------------------------------------------------------------------- what is not touched


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


# --------------------------------------------------------------------------- a disk that is full


@pytest.fixture
def stack(inputs: Path) -> int:
    """A stack whose result takes some hundred kilobytes; gives the size of its .npy."""
    np.save("images.npy", RNG.normal(size=(400, 3, 16)).astype(np.float32))
    np.save("texts.npy", RNG.normal(size=(400, 8, 16)).astype(np.float32))
    return 128 + 400 * 8 * 16 * 4


def limited(size: int) -> Callable[[], None]:
    """Files of this process end here: a write beyond it fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("missing", [1, 10_000])
@pytest.mark.parametrize("ending", [*ENDINGS, "-"])
def test_full_disk_leaves_nothing_and_says_so_in_one_line(
    stack: int, inputs: Path, program: Callable, ending: str, missing: int
) -> None:
    before = everything(inputs)
    output = "-" if ending == "-" else f"out{ending}"
    done = program(
        *("fuse", "images.npy", "texts.npy", "-o", output, "--quiet"),
        preexec_fn=limited(stack - missing),
        env={"TMPDIR": str(inputs)},
    )
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.endswith(b": cannot be written: File too large\n")
    assert done.stderr.count(b"\n") == 1
    assert everything(inputs) == before


def test_full_disk_keeps_the_file_that_was_to_be_replaced(
    stack: int, inputs: Path, program: Callable
) -> None:
    Path("out.npy").write_text("old")
    before = everything(inputs)
    args = ("fuse", "images.npy", "texts.npy", "-o", "out.npy", "--quiet", "--force")
    done = program(*args, preexec_fn=limited(stack - 1))
    assert done.returncode == 1
    assert everything(inputs) == before


def test_report_that_finds_no_room_leaves_no_result_either(inputs: Path, program: Callable) -> None:
    before = everything(inputs)
    done = program(
        *("fuse", "image.npy", "text.npy", "-o", "out.npy", "--report", "report.json", "--quiet"),
        preexec_fn=limited(1000),
    )
    assert done.returncode == 1
    assert done.stderr == b"error: report.json: cannot be written: File too large\n"
    assert everything(inputs) == before


def test_weights_that_find_no_room_leave_nothing(inputs: Path, program: Callable) -> None:
    before = everything(inputs)
    args = ("init", "-o", "weights.safetensors", "--dim", "64")
    done = program(*args, preexec_fn=limited(10_000))
    assert done.returncode == 1
    assert done.stderr == b"error: weights.safetensors: cannot be written: File too large\n"
    assert everything(inputs) == before


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@needs_full
@pytest.mark.parametrize("args", [["-o", "-"], ["-o", "out.npy"], ["-o", "out.npy", "--json"]])
def test_full_disk_behind_stdout_is_said_in_one_line(
    inputs: Path, program: Callable, args: list[str]
) -> None:
    with open("/dev/full", "wb") as full:
        done = program(
            *("fuse", "image.npy", "text.npy", *args, "--quiet"),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr
    assert (b"; out.npy is complete and stays" in done.stderr) is os.path.exists("out.npy")
    assert os.path.exists("out.npy") is ("out.npy" in args)


@needs_full
@pytest.mark.parametrize(
    "args", [["--help"], ["inspect", "text.npy"], ["inspect", "text.npy", "--json"]]
)
def test_full_disk_behind_stdout_of_other_commands_is_no_traceback(
    inputs: Path, program: Callable, args: list[str]
) -> None:
    with open("/dev/full", "wb") as full:
        done = program(*args, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1


# ------------------------------------------------------------------------- streams that are not


@pytest.mark.parametrize("output", ["-", "out.npy"])
def test_reader_of_stdout_that_has_gone_is_no_traceback(
    inputs: Path, program: Callable, output: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program(
        *("fuse", "image.npy", "text.npy", "-o", output, "--quiet"),
        capture_output=False,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == b""


def test_closed_stdout_is_no_traceback(inputs: Path, program: Callable) -> None:
    done = program(
        *("fuse", "image.npy", "text.npy", "-o", "out.npy", "--quiet"),
        preexec_fn=lambda: os.close(1),
    )
    assert b"Traceback" not in done.stderr
    assert np.load("out.npy").shape == (5, 8)
    assert done.returncode == 0


def test_closed_stderr_does_not_put_notes_on_stdout(inputs: Path, program: Callable) -> None:
    done = program(
        *("fuse", "image.npy", "text.npy", "-o", "out.npy"),
        preexec_fn=lambda: os.close(2),
    )
    assert (done.returncode, done.stdout) == (0, b"out.npy\n")
    assert np.load("out.npy").shape == (5, 8)


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
        {"PYTHONIOENCODING": "utf-8:strict"},  # what every other locale has
    ],
    ids=["C", "C.UTF-8", "strict"],
)
def test_name_that_is_not_utf_8_is_printed_as_the_bytes_it_is(
    inputs: Path, program: Callable, env: dict[str, str]
) -> None:
    name = b"w\xf6rter.fused.npy"
    os.rename("text.npy", b"w\xf6rter.npy")
    done = program("fuse", "image.npy", b"w\xf6rter.npy", env=env)
    assert b"Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (0, name + b"\n")
    assert os.path.exists(name)


def test_report_table_of_a_name_that_cannot_be_printed_is_shown(
    inputs: Path, program: Callable
) -> None:
    name = b"[red]\x1b[2J\xf6.npy"
    os.rename("text.npy", name)
    done = program("fuse", "image.npy", name, "-o", "out.npy", "--report")
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
    assert b"\x1b[2J" not in done.stderr
    assert b"[red]" in done.stderr


# ----------------------------------------------------------------------------------- signals


@contextlib.contextmanager
def started(*args: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run of the command line that is killed at the end, if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fusecli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | env,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], object]) -> None:
    """Until something happened in a running process."""
    deadline = time.monotonic() + 30
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), STOPS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_signal_in_the_middle_of_a_job_leaves_nothing(
    inputs: Path, ending: str, number: signal.Signals, code: int
) -> None:
    np.save("images.npy", np.ones((20_000, 3, 64), np.float32))
    np.save("texts.npy", np.ones((20_000, 10, 64), np.float32))
    before = everything(inputs)
    args = ("fuse", "images.npy", "texts.npy", "-o", f"out{ending}", "--max-memory", "1K")
    with started(*args) as process:
        wait_for(process, lambda: list(inputs.glob(".*.part")))
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == b""
    assert all(line.startswith((b"note:", b"warning:")) for line in err.splitlines()), err
    assert everything(inputs) == before


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_signal_while_torch_is_imported_is_silent(
    inputs: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "slow" / "torch").mkdir(parents=True)
    (tmp_path / "slow" / "torch" / "__init__.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'importing')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    before = everything(inputs)
    args = ("fuse", "image.npy", "text.npy", "-o", "out.npy", "--engine", "torch", "--quiet")
    with started(*args, PYTHONPATH=str(tmp_path / "slow")) as process:
        wait_for(process, (tmp_path / "importing").exists)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert everything(inputs) == before


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_signal_while_stdin_is_awaited_is_silent(
    inputs: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusecli", "fuse", "-", "text.npy", "-o", "out.npy", "--quiet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        process.stdin.write(Path("image.npy").read_bytes()[:100])
        process.stdin.flush()
        wait_for(process, lambda: _sleeps(process.pid))
        process.send_signal(number)
        process.wait(timeout=30)
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
        assert process.returncode == code
        assert not os.path.exists("out.npy")
    finally:
        process.kill()
        process.communicate()


def _sleeps(pid: int) -> bool:
    """Whether a process waits in a read of a pipe, with fusecli's handlers installed."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    handles = caught >> (signal.SIGTERM - 1) & 1
    return bool(handles) and "State:\tS" in status and "numpy" in _maps(pid)


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


# ------------------------------------------------------------------------------- the pieces


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


def test_two_runs_on_one_output_do_not_meet(folder: Path) -> None:
    with StagedFile("a.bin") as one, StagedFile("a.bin") as two:
        one.begin()
        two.begin()
        one.write(b"1" * 100_000)
        two.write(b"2" * 100_000)
        one.publish()
        two.publish()
    assert Path("a.bin").read_bytes() == b"2" * 100_000
    assert os.listdir() == ["a.bin"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_writer_left_by_an_error_leaves_nothing(folder: Path, ending: str) -> None:
    rows = np.ones((2, 4), np.float32)
    writer = FeatureWriter(f"a{ending}", (4, 4), "float32", {})
    with contextlib.suppress(KeyError), writer:
        writer.begin()
        writer.append(rows)
        raise KeyError
    assert os.listdir() == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_writer_takes_rows_in_any_layout(folder: Path, ending: str) -> None:
    rows = RNG.normal(size=(4, 6)).astype(np.float32)
    with FeatureWriter(f"a{ending}", (6, 4), "float32", {}) as writer:
        writer.begin()
        writer.append(rows.T[:2])
        writer.append(rows.T[2:])
        writer.finish()
        writer.publish()
    np.testing.assert_array_equal(fused(f"a{ending}"), rows.T)


def test_writer_refuses_a_folder_that_is_gone(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"gone/a\.npy: cannot be written"):
        FeatureWriter("gone/a.npy", (1, 1), "float32", {}).begin()
