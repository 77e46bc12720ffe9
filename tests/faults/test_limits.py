"""What the system gives a process, where it gives little: few open files, no working folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.batches import DI, DT, left_behind
from tests.faults.running import contents, run

FOLDERS = 100


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the open files in /proc")
def test_batch_into_more_folders_than_files_may_be_open(folder: Path) -> None:
    """Descriptors of result folders are kept only where there are enough of them."""
    import resource

    rng = np.random.default_rng(0)
    for n in range(FOLDERS):
        for side, tokens, width in (("images", 2, DI), ("texts", 3, DT)):
            os.makedirs(f"{side}/{n}")
            np.save(f"{side}/{n}/a.npy", rng.standard_normal((tokens, width), np.float32))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir("/proc/self/fd"))) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        done = run("batch", "images", "texts", "-o", "out", "--workers", "2", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (done.code, done.err) == (0, "")
    assert sum(name.endswith(".npy") for name in contents(Path("out"))) == FOLDERS
    assert left_behind(Path("out")) == []


@pytest.mark.parametrize(
    "args",
    [
        ("fuse", "image.npy", "text.npy"),
        ("init", "-o", "w.safetensors", "--dim", "8"),
        ("batch", "images", "texts", "-o", "out"),
        ("train", "images", "texts", "--labels", "l.csv", "-o", "run"),
        ("predict", "run", "images", "texts"),
        ("inspect", "image.npy"),
    ],
)
def test_working_folder_that_is_gone(folder: Path, args: tuple[str, ...]) -> None:
    """Torch's libraries would end the process with a message of their own."""
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    try:
        done = run(*args)
    finally:
        os.chdir(folder)
    message = "error: the working folder has been removed: change to another one\n"
    assert (done.code, done.out, done.err) == (1, "", message)


@pytest.mark.slow
def test_what_a_run_says_of_itself_is_replaced_by_no_command_that_reads_it(
    folder_of_run: Path,
) -> None:
    before = contents(Path("run"))
    shutil.copy("run/weights.safetensors", "alone.safetensors")
    fuse = ("fuse", "images/00.npy", "texts/00.npy", "-q", "-o", "out.npy", "--force", "--report")
    predict = ("predict", "run", "images", "texts", "-q", "--force", "-o")
    for job, name in (
        ((*fuse, "run/metrics.json", "--weights", "run"), "run/metrics.json"),
        ((*fuse, "run/run.json", "--weights", "run/weights.safetensors"), "run/run.json"),
        ((*predict, "run/predictions.csv"), "run/predictions.csv"),
        ((*predict, "run/split.csv"), "run/split.csv"),
    ):
        done = run(*job)
        assert (done.code, done.err.count("\n")) == (1, 1), done
        assert done.err.startswith(f"error: {name}: is"), done
        assert "inputs are never changed" in done.err, done
    assert contents(Path("run")) == before
    assert not os.path.exists("out.npy")
    assert run(*fuse, "metrics.json", "--weights", "alone.safetensors").code == 0
