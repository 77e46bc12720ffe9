"""Folders and files that the user may not read or write, a disk that is full, and one that is
read-only: one line, exit 1, nothing left behind. Where root runs the tests all of it is real.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.batches import left_behind
from tests.conftest import Outcome
from tests.faults.layer import WRITES, Layer
from tests.faults.running import contents, run
from tests.faults.training import TRAIN

NOBODY = 65534
CHANGES = ("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir")

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root"
)

PAIRS = ("images", "texts")
BATCH = ("batch", *PAIRS, "-q", "--workers", "1", "--dim", "16", "-o")
# Of each command that writes: its arguments before the folder it writes to, and those after it.
WRITING: dict[str, tuple[str, ...]] = {
    "fuse": ("fuse", "image.npy", "text.npy", "-q", "-o", "{}/out.npy"),
    "maps": (*("fuse", "image.npy", "text.npy", "-q", "-o", "out.npy"),
             *("--attention", "{}/maps.npy")),
    "report": ("fuse", "image.npy", "text.npy", "-q", "-o", "out.npy", "--report", "{}/r.json"),
    "init": ("init", "-q", "--dim", "16", "-o", "{}/w.safetensors"),
    "batch": (*BATCH, "{}/out"),
    "pack": (*BATCH, "{}/out", "--pack"),
    "merge": ("batch", "--merge", "-q", "-o", "{}/begun"),
    "again": (*BATCH, "{}/begun"),
    "train": tuple("{}/run" if arg == "run" else arg for arg in TRAIN),
    "predict": ("predict", "run", *PAIRS, "-q", "-o", "{}/said.csv"),
}  # fmt: skip
BATCHES = ("batch", "pack", "merge", "again")


@pytest.fixture
def inputs(folder_of_run: Path) -> Iterator[Path]:
    """Everything that the commands read, for everybody to read; and `there`, to write to."""
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((3, 16)).astype(np.float32))
    np.save("text.npy", rng.standard_normal((5, 16)).astype(np.float32))
    assert run("init", "-o", "w.safetensors", "--dim", "16", "-q").code == 0
    os.mkdir("there")
    # pytest's folders are its user's alone.
    above, modes = folder_of_run, {}
    while above != above.parent:
        modes[above] = above.stat().st_mode
        above.chmod(modes[above] | 0o755)
        above = above.parent
    yield folder_of_run
    for path, mode in modes.items():
        path.chmod(mode)


def arguments(command: str, folder: str = "there") -> list[str]:
    return [arg.format(folder) for arg in WRITING[command]]


@contextmanager
def nobody() -> Iterator[None]:
    """This process as another user, without root's rights."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def as_nobody(*args: str) -> Outcome:
    with nobody():
        return run(*args)


def one_line(done: Outcome, why: str, name: str = "") -> None:
    assert (done.code, done.out) == (1, ""), done
    assert done.err.startswith("error: "), done
    assert done.err.count("\n") == 1, done
    assert why in done.err, done
    assert name in done.err, done


@needs_root
@pytest.mark.parametrize("command", WRITING)
def test_folder_that_may_not_be_written(inputs: Path, command: str) -> None:
    if command in ("again", "merge"):
        assert run(*BATCH, "there/begun").code == 0
        next(Path("there/begun").rglob("*.npy")).unlink()  # so that there is work left
    inputs.chmod(0o777)
    before = contents(inputs)
    one_line(as_nobody(*arguments(command)), "Permission denied", "there/")
    assert contents(inputs) == before


@needs_root
def test_process_of_another_user(inputs: Path) -> None:
    """All of its ids are another's, not only the one that permissions follow."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            done = run(*arguments("fuse"))
            os.write(writing, f"{done.code} {done.out}{done.err}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert said == b"1 error: there/out.npy: cannot be written: Permission denied\n"
    assert os.listdir("there") == []


READING: dict[str, tuple[tuple[str, ...], str]] = {
    "fuse image": (WRITING["fuse"], "image.npy"),
    "fuse weights": ((*WRITING["fuse"], "--weights", "w.safetensors"), "w.safetensors"),
    "fuse run": ((*WRITING["fuse"], "--weights", "run"), "run/weights.safetensors"),
    "batch weights": ((*WRITING["batch"], "--weights", "w.safetensors"), "w.safetensors"),
    "batch folder": (WRITING["batch"], "images"),
    "batch manifest": (
        (*("batch", "--manifest", "pairs.csv"), "-q", "--dim", "16", "-o", "{}/out"),
        "pairs.csv",
    ),
    "train features": (WRITING["train"], "images/03.npy"),
    "train labels": (WRITING["train"], "labels.csv"),
    "predict model": (WRITING["predict"], "run/weights.safetensors"),
    "predict folder": (WRITING["predict"], "run"),
    "predict metrics": (WRITING["predict"], "run/metrics.json"),
    "evaluate folder": (("evaluate", "run", *PAIRS, "--labels", "labels.csv", "-q"), "run"),
    "evaluate models": (("evaluate", "run", *PAIRS, "--labels", "labels.csv"), "run/models"),
    "inspect": (("inspect", "image.npy"), "image.npy"),
}


@needs_root
@pytest.mark.parametrize("name", READING)
def test_file_that_may_not_be_read(inputs: Path, name: str) -> None:
    args, unreadable = READING[name]
    Path("pairs.csv").write_text("id,image,text\na,images/00.npy,texts/00.npy\n")
    os.chmod("there", 0o777)
    os.chmod(unreadable, 0)
    before = contents(inputs)
    done = as_nobody(*(arg.format("there") for arg in args))
    one_line(done, "Permission denied", unreadable)
    assert contents(inputs) == before
    assert os.listdir("there") == []


@needs_root
def test_pair_that_may_not_be_read_fails_alone(inputs: Path) -> None:
    os.chmod("there", 0o777)
    os.chmod("images/03.npy", 0)
    done = as_nobody(*arguments("batch"))
    assert (done.code, done.err.count("\n")) == (3, 1), done
    assert "images/03.npy: cannot be opened: Permission denied" in done.err
    assert len([n for n in contents(Path("there/out")) if n.endswith(".npy")]) == 23


@needs_root
def test_a_run_of_somebody_else_is_read(inputs: Path) -> None:
    """Evaluating, predicting and fusing with it write nothing there."""
    os.chmod("there", 0o777)
    before = contents(Path("run"))
    assert as_nobody("evaluate", "run", *PAIRS, "--labels", "labels.csv", "-q").code == 0
    assert as_nobody(*arguments("predict")).code == 0
    fuse = ("fuse", "images/00.npy", "texts/00.npy", "-q", "-o", "there/out.npy")
    assert as_nobody(*fuse, "--weights", "run").code == 0
    assert contents(Path("run")) == before


@contextmanager
def disk(options: str) -> Iterator[None]:
    """A disk of its own at `there`."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "fusecli-test", "there"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "there"], check=True)


@needs_root
@pytest.mark.parametrize("command", WRITING)
def test_disk_that_is_read_only(inputs: Path, command: str) -> None:
    with disk("size=4m"):
        if command in ("again", "merge"):
            assert run(*BATCH, "there/begun").code == 0
        before = contents(inputs)
        subprocess.run(["mount", "-o", "remount,ro", "there"], check=True)
        one_line(run(*arguments(command)), "Read-only file system", "there/")
        assert contents(inputs) == before


def fill(file: FileIO) -> None:
    with contextlib.suppress(OSError):  # it is full
        while file.write(bytes(4096)):
            pass


@needs_root
@pytest.mark.parametrize("left", [0, 2, 5])
@pytest.mark.parametrize("command", [name for name in WRITING if name not in ("again", "merge")])
def test_disk_that_is_full(inputs: Path, command: str, left: int) -> None:
    """So many pages of it are left; once there is room, the same command completes."""
    np.save("text.npy", np.random.default_rng(1).standard_normal((2000, 16), np.float32))
    with disk("size=4m"):
        filler = Path("there/filler")
        with filler.open("wb", buffering=0) as file:
            fill(file)
        os.truncate(filler, filler.stat().st_size - os.sysconf("SC_PAGE_SIZE") * left)
        before = contents(inputs)
        done = run(*arguments(command))
        if done.code != 0:
            one_line(done, "No space left on device", "there/")
            assert "free space and run the same command again" in done.err
            after = contents(inputs)
            assert {name: after[name] for name in before} == before
            if command not in (*BATCHES, "train"):  # which go on where they were
                assert after == before
        else:
            assert command in ("predict", "report", "init"), "a few lines fit"
        filler.unlink()
        again = ("-f",) if done.code == 0 else ()
        assert run(*arguments(command), *again).code == 0
        names = set(contents(Path("there")))
        assert names
        assert left_behind(Path("there")) == []


class _Disk(Layer):
    """One on which no call that writes succeeds."""

    def __init__(self, number: int) -> None:
        super().__init__(Path("there"))
        self._number = number

    def _refuse(self) -> None:
        raise OSError(self._number, os.strerror(self._number))

    def count(self, name: str, path: str) -> None:
        if name in WRITES or (self._number == errno.EROFS and name in CHANGES):
            self._refuse()

    def changed(self, *event: object) -> None:
        pass

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes and self._number == errno.EROFS and self.where(path, dir_fd) is not None:
            self._refuse()
        return super()._open(path, flags, mode, dir_fd=dir_fd)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("command", [name for name in WRITING if name != "merge"])
def test_disk_on_which_nothing_can_be_written(inputs: Path, command: str, number: int) -> None:
    """The same without a disk of its own."""
    with _Disk(number).installed():
        one_line(run(*arguments(command)), os.strerror(number), "there/")
    assert command in ("again", *BATCHES, "train") or os.listdir("there") == []
    assert run(*arguments(command)).code == 0


def test_file_size_limit(inputs: Path, program: Callable) -> None:
    """As a full disk: a limit on the size of files, which sends a signal besides."""
    import resource

    np.save("text.npy", np.random.default_rng(1).standard_normal((2000, 16), np.float32))
    done = program(
        *arguments("fuse"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: there/out.npy: cannot be written: File too large\n"
    assert os.listdir("there") == []
