"""A full disk, streams that are closed, and signals: nothing is left, one line is said."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.features.written import ENDINGS, RNG, everything


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


@pytest.mark.slow
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
