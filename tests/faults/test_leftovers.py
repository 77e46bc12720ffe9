"""The name of a temporary file says which process made it; files of ended processes are removed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusecli.features import leftovers
from fusecli.features.atomic import StagedFile
from fusecli.features.leftovers import sweep, temporary_name
from tests.faults.running import run

HOLDS_A_FILE = """
import sys, time
from fusecli.features.atomic import StagedFile
with StagedFile(sys.argv[1]) as staged:
    staged.begin().write(b"half")
    staged.handle.flush()
    print(staged.staged, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def dead_name() -> str:
    """The name of a temporary file of a process that has ended."""
    ended = subprocess.run(
        [sys.executable, "-c", "from fusecli.features.leftovers import temporary_name as n;"
         "print(n())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ended.stdout.strip()


def started(*args: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_FILE, *args], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_name_holds_process_number_start_time_and_host() -> None:
    match = re.fullmatch(r"\.fusecli-(\d+)-(\d+)-[0-9a-f]{8}@(.+)\.part", temporary_name())
    assert match is not None
    assert int(match[1]) == os.getpid()
    assert match[3] == os.uname().nodename
    if sys.platform == "linux":
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        assert match[2] == ticks
    assert temporary_name() != temporary_name()


def test_file_of_a_run_is_removed_by_the_next_only_after_the_run_has_ended(folder: Path) -> None:
    process, staged = started("a.npy")
    try:
        assert sweep(".") == []
        with StagedFile("b.npy") as other:
            other.begin().publish()
        assert os.path.exists(staged)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert os.path.exists(staged)
    with StagedFile("b.npy") as other:
        other.begin().publish()
    assert os.listdir() == ["b.npy"]


def test_fuse_removes_what_a_killed_fuse_left(folder: Path, cli: Callable, dead_name: str) -> None:
    np.save("image.npy", np.ones((2, 8), np.float32))
    np.save("text.npy", np.ones((3, 8), np.float32))
    Path(dead_name).write_bytes(b"half a result")
    assert cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "-q").code == 0
    assert sorted(os.listdir()) == ["image.npy", "out.npy", "text.npy"]


def test_init_removes_what_a_killed_init_left(folder: Path, cli: Callable, dead_name: str) -> None:
    Path(dead_name).write_bytes(b"half a file")
    assert cli("init", "-o", "w.safetensors", "--dim", "8").code == 0
    assert os.listdir() == ["w.safetensors"]


@pytest.mark.slow
def test_predict_removes_what_a_killed_predict_left(folder_of_run: Path, dead_name: str) -> None:
    Path(dead_name).write_bytes(b"half a table")
    before = set(os.listdir())
    assert run("predict", "run", "images", "texts", "-o", "new.csv", "--quiet").code == 0
    assert set(os.listdir()) == before - {dead_name} | {"new.csv"}


def test_a_later_process_with_the_same_number_is_not_the_owner(folder: Path) -> None:
    pid, start = os.getpid(), leftovers._own_start(os.getpid())
    mine = f".fusecli-{pid}-{start}-00000000@{os.uname().nodename}.part"
    other = f".fusecli-{pid}-{start + 1}-00000000@{os.uname().nodename}.part"
    Path(mine).touch()
    Path(other).touch()
    assert sweep(".") == [other]
    assert os.listdir() == [mine]


def test_file_that_is_locked_stays_even_if_its_process_cannot_be_seen(
    folder: Path, dead_name: str
) -> None:
    """As in another container, whose processes have numbers of their own."""
    with open(dead_name, "w") as file:
        leftovers.hold(file.fileno())
        assert sweep(".") == []
    assert sweep(".") == [dead_name]


@pytest.mark.parametrize(
    "name",
    [
        ".fusecli-1234-1-00000000@another-host.part",
        ".fusecli-0123456789abcdef.part",  # of version 0.1.0, which does not say its process
        ".fusecli-notes.part",
        "fusecli-999999999-1-00000000@{host}.part",
        ".fusecli-999999999-1-00000000@{host}.part.npy",
    ],
)
def test_files_of_other_hosts_and_other_programs_stay(folder: Path, name: str) -> None:
    name = name.format(host=os.uname().nodename)
    Path(name).touch()
    assert sweep(".") == []
    assert os.listdir() == [name]


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_links_folders_and_pipes_with_the_name_of_a_temporary_file_stay(
    folder: Path, dead_name: str, kind: str
) -> None:
    Path("precious").write_text("precious")
    if kind == "link":
        os.symlink("precious", dead_name)
    elif kind == "dangling":
        os.symlink("nowhere", dead_name)
    elif kind == "folder":
        os.mkdir(dead_name)
    else:
        os.mkfifo(dead_name)
    assert sweep(".") == []
    assert sorted(os.listdir()) == sorted([dead_name, "precious"])
    assert Path("precious").read_text() == "precious"


def test_staged_file_is_not_written_through_a_link_that_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("precious").write_text("precious")
    with StagedFile("a.npy") as staged:
        os.symlink("precious", staged.staged)
        with pytest.raises(Exception, match=r"a\.npy: cannot be written: File exists"):
            staged.begin()
    assert Path("precious").read_text() == "precious"


def test_second_ctrl_c_stops_at_once_and_what_it_leaves_is_removed_later(folder: Path) -> None:
    """The first Ctrl-C cleans up, which can hang, as on a network disk that does not answer."""
    program = r"""
import os, sys, time
from fusecli.features import atomic
def hangs(self, *error):
    os.write(1, b"cleaning\n")
    time.sleep(60)
atomic.StagedFile.__exit__ = hangs
from fusecli.job import run
def slow(*args):
    os.write(1, b"computing\n")
    time.sleep(60)
run.stream = slow
from fusecli.cli.main import main
main(["fuse", "image.npy", "text.npy", "-o", "out.npy", "-q"])
"""
    np.save("image.npy", np.ones((2, 8), np.float32))
    np.save("text.npy", np.ones((3, 8), np.float32))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)  # the same Ctrl-C, passed on by a wrapper, changes nothing
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
    assert len(os.listdir()) == 3
    sweep(".")
    assert sorted(os.listdir()) == ["image.npy", "text.npy"]
