"""Errors that no other code handles still end in one line on stderr."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fusecli.errors import out_of_memory
from fusecli.job import run as job_run

JOB = ("fuse", "image.npy", "text.npy", "-o", "out.npy", "--quiet")


def test_torch_without_enough_memory_is_recognised() -> None:
    """The real error of torch on the CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    why = out_of_memory(caught.value)
    assert why is not None
    assert str(1 << 60) in why
    assert "\n" not in why


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "an allocation failed"),
        (np.exceptions.AxisError("axis"), None),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB."), "2.00 GiB"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "9 GB"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (OSError(errno.ENOMEM, "out of memory"), None),
    ],
)
def test_only_failed_allocations_count_as_too_little_memory(
    error: Exception, says: str | None
) -> None:
    why = out_of_memory(error)
    assert (why is None) if says is None else (why is not None and says in why)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1 PiB"),
        torch.OutOfMemoryError("CUDA out of memory. Unable to allocate 1 PiB"),
    ],
)
def test_job_without_enough_memory_ends_in_one_line_and_leaves_nothing(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*args: object) -> None:
        raise error

    monkeypatch.setattr(job_run, "stream", failing)
    before = sorted(os.listdir())
    done = cli(*JOB)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: there is not enough memory for this job: {error}\n"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", [None, "some/file"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_other_system_errors_end_in_one_line_and_do_not_blame_stdout(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch, number: int, name: str | None
) -> None:
    def failing(*args: object) -> None:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(job_run, "stream", failing)
    done = cli(*JOB)
    assert (done.code, done.out) == (1, "")
    where = "" if name is None else f"{name}: "
    assert done.err == f"error: {where}{os.strerror(number)}\n"
    assert not os.path.exists("out.npy")


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ("fuse", "image.npy", "text.npy"),
        ("init", "-o", "w.safetensors", "--dim", "8"),
        ("batch", "images", "texts", "-o", "out"),
    ],
)
def test_deleted_working_folder_ends_in_one_line(tmp_path: Path, args: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = (
        "import os, sys\n"
        f"os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
        f"from fusecli.cli.main import main; main({list(args)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("args", [("inspect", "téxt×😀.npy"), ("methods",), ("fuse", "--help")])
def test_output_is_written_in_every_encoding_of_stdout(
    folder: Path, program: Callable, encoding: str, args: tuple[str, ...]
) -> None:
    np.save("téxt×😀.npy", np.ones((2, 8), np.float32))
    done = program(*args, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode(encoding)
    if args[0] == "inspect" and encoding == "ascii":
        assert "t\\xe9xt\\xd7\\U0001f600.npy" in said
    elif args[0] == "inspect" and encoding == "utf-8":
        assert "téxt×😀.npy" in said


def test_exit_code_is_kept_if_stderr_is_closed(inputs: Path, program: Callable) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program(
        *("fuse", "image.npy", "gone.npy"),
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("command", ["batch", "train"])
def test_folder_without_permission_is_not_reported_as_missing(
    folder: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    real = os.stat

    def closed(path: object, **options: object) -> os.stat_result:
        if path == "closed/images":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, **options)  # type: ignore[call-overload,no-any-return]

    Path("texts").mkdir()
    monkeypatch.setattr(os, "stat", closed)
    more = ("--labels", "labels.csv") if command == "train" else ()
    done = cli(command, "closed/images", "texts", "-o", "out", *more)
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: closed/images: cannot be opened: Permission denied\n"
    assert os.listdir() == ["texts"]


@pytest.mark.parametrize("digits", [20, 400])
def test_max_memory_of_many_digits_gives_no_traceback(
    inputs: Path, cli: Callable, digits: int
) -> None:
    done = cli(*JOB, "--max-memory", "9" * digits)
    assert done.code in (0, 2)
    assert done.err.count("\n") == (done.code != 0)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no terminals of this kind")
def test_a_terminal_that_closes_ends_a_batch_with_129(folder: Path) -> None:
    """The progress bar writes to a terminal that is closed; finished results stay."""
    import pty

    for side, tokens in (("images", 6), ("texts", 5)):
        Path(side).mkdir()
        rows = np.random.default_rng(0).standard_normal((tokens, 16)).astype(np.float32)
        for index in range(4000):
            np.save(f"{side}/{index}.npy", rows)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "fusecli", "batch", "images", "texts", "-o", "out"]
    running = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        close_fds=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(slave)
    os.read(master, 1)  # it has begun to write to the terminal
    os.close(master)  # hangs up
    assert running.wait(50) == 129
    assert not list(Path().glob("out/*.part"))
