"""On a system without POSIX calls everything but `batch` works, and `batch` says so in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# What Windows does not have, and fusecli or a library that it may import uses.
HIDDEN = """
import os, signal, sys
for name in ("fcntl", "resource", "termios"):
    sys.modules[name] = None
for name in (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fdatasync", "fork", "getuid", "link",
    "posix_fadvise", "pread", "preadv", "pwrite", "pwritev", "readv", "sched_getaffinity",
    "statvfs", "sysconf", "uname", "writev",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1"):
    delattr(signal, name)
sys.platform = "other"  # nothing that asks for linux or darwin may run
for call in (os.open, os.stat, os.unlink, os.rename, os.mkdir, os.rmdir):
    os.supports_dir_fd.discard(call)
"""

COMMANDS = """
from fusecli.cli.main import main
for command in sys.argv[1].split(";"):
    try:
        main(command.split())
    except SystemExit as stop:
        if stop.code:
            raise
"""

IMPORTS = """
import importlib, pkgutil
import fusecli
for module in pkgutil.walk_packages(fusecli.__path__, "fusecli."):
    if module.name != "fusecli.__main__":
        importlib.import_module(module.name)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDDEN + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def pair(folder):
    rng = np.random.default_rng(0)
    for side, tokens in (("images", 5), ("texts", 3)):
        Path(side).mkdir()
        np.save(f"{side}/a.npy", rng.standard_normal((tokens, 8), np.float32))


@pytest.mark.slow
def test_single_jobs_work_without_posix_calls(pair, cli):
    done = run(
        COMMANDS,
        "inspect images/a.npy --stats;"
        "init --dim 8 -o w.safetensors;"
        "fuse images/a.npy texts/a.npy --weights w.safetensors -o out.npy;"
        "fuse images/a.npy texts/a.npy --weights w.safetensors -o out.npy --force",
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    here = cli("fuse", "images/a.npy", "texts/a.npy", "--weights", "w.safetensors", "-o", "b.npy")
    assert here.code == 0
    assert Path("out.npy").read_bytes() == Path("b.npy").read_bytes()
    assert [path.name for path in Path().glob(".fusecli*")] == []


def test_batch_says_in_one_line_that_it_needs_a_posix_system(pair):
    done = run(COMMANDS, "batch images texts -o out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: fusecli batch needs a POSIX system")
    assert done.stderr.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.slow
def test_every_module_can_be_imported_without_posix_calls():
    done = run(IMPORTS)
    assert done.returncode == 0, done.stderr
