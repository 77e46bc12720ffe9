"""A batch on Ray: the same bytes as the plain run, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from tests.batches import write_pairs

CLUSTER = Path(__file__).parents[1] / "ray_cluster.py"
pytestmark = pytest.mark.ray


# ------------------------------------------------------------- real clusters, real processes


@dataclass
class Session:
    """Ray's processes of one test, known by a variable in their environment."""

    env: dict[str, str]
    process: subprocess.Popen[str] | None = None
    address: str = ""

    def processes(self, title: str = "") -> list[int]:
        """Those whose command line begins so."""
        mark = f"FUSECLI_TEST_SESSION={self.env['FUSECLI_TEST_SESSION']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and (entry / "cmdline").read_bytes().startswith(title.encode())
                    and mark in (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def start(self, *args: str) -> subprocess.Popen[str]:
        """The command line, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "fusecli", *args],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the command line."""
        with self.start(*args) as running:
            out, err = running.communicate(timeout=100)
        return running.returncode, out, err

    def remove_node(self) -> None:
        """Take the second node away, with all its processes."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"

    def stopped_worker(self) -> int:
        """A worker that was stopped (not ended) with a chunk in its hands."""
        return until(self._stop_one, "no worker was seen at work")

    def _stop_one(self) -> int | None:
        for pid in self.processes("ray::Worker.work"):
            os.kill(pid, signal.SIGSTOP)
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker.work"):
                return pid
            os.kill(pid, signal.SIGCONT)
        return None


def until(happens: Callable[[], Any], otherwise: str, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := happens():
            return result
        time.sleep(0.005)
    return pytest.fail(otherwise)


@contextlib.contextmanager
def ray_session() -> Iterator[Session]:
    """An environment for Ray: on the loopback, reporting to nobody, with a folder that goes."""
    with tempfile.TemporaryDirectory(prefix="fray-", ignore_cleanup_errors=True) as folder:
        os.mkdir(f"{folder}/ray")
        here = Session(
            os.environ
            | {
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TMPDIR": folder,
                "TMPDIR": folder,
                "HOME": f"{folder}/home",
                "FUSECLI_TEST_SESSION": os.path.basename(folder),
            }
        )
        os.mkdir(f"{folder}/home")
        yield here
        until(lambda: not here.processes(), "Ray's processes outlive the test")
        assert os.listdir(f"{folder}/home") == [], "something was written into the home folder"


@contextlib.contextmanager
def two_nodes(session: Session) -> Iterator[Session]:
    """A cluster of two nodes with a CPU each."""
    with subprocess.Popen(
        [sys.executable, str(CLUSTER)],
        env=session.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        session.process, session.address = process, process.stdout.readline().strip()
        yield session
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def session() -> Iterator[Session]:
    """For a test that starts Ray by itself."""
    with ray_session() as here:
        yield here


@pytest.fixture
def cluster() -> Iterator[Session]:
    """For a test that takes a cluster apart."""
    with ray_session() as here, two_nodes(here):
        yield here


@pytest.fixture(scope="module")
def shared() -> Iterator[Session]:
    """A cluster for all tests that leave it whole: Ray takes seconds to start."""
    with ray_session() as here, two_nodes(here):
        yield here


def files_of(root: str) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in Path(root).rglob("*") if path.is_file()}


def assert_same(one: str, other: str) -> None:
    """Two folders hold the same files, byte for byte, the journal too."""
    left, right = files_of(one), files_of(other)
    assert set(left) == set(right)
    for name, path in left.items():
        assert filecmp.cmp(path, right[name], shallow=False), name


def plain(session: Session, output: str, *args: str) -> None:
    code, _, err = session.run("batch", "images", "texts", "-o", output, "--engine", "numpy", *args)
    assert code == 0, err


@pytest.mark.parametrize("end", ["worker", "node"])
def test_worker_or_node_that_ends_at_work_changes_nothing(
    folder: Path, cluster: Session, end: str
) -> None:
    write_pairs(3000)
    packed = ["--pack", "--shard-size", "1M"] if end == "node" else []
    plain(cluster, "plain", *packed)
    command = ["batch", "images", "texts", "-o", "ray", "--engine", "numpy", *packed]
    with cluster.start(*command, "--ray", cluster.address) as running:
        worker = cluster.stopped_worker()  # the run cannot end without its chunk
        if end == "worker":
            os.kill(worker, signal.SIGKILL)
        else:
            cluster.remove_node()
            with contextlib.suppress(ProcessLookupError):  # it was of that node
                os.kill(worker, signal.SIGCONT)
        out, err = running.communicate(timeout=100)
    assert (running.returncode, out) == (0, "ray\n"), err
    assert "3,000 done" in err
    if end == "worker":
        assert "warning: a Ray worker was lost, another does its pairs: " in err
    assert_same("plain", "ray")
    lines = Path("ray/journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"{n:05}" for n in range(3000)]


def test_workers_are_given_gpus_of_the_cluster(folder: Path, shared: Session) -> None:
    write_pairs(30)
    plain(shared, "plain")
    on = ["batch", "images", "texts", "--ray", shared.address, "--gpus-per-worker"]
    code, _, err = shared.run(*on, "1", "-o", "ray", "--device", "cpu")
    assert code == 0, err
    assert_same("plain", "ray")
    code, out, err = shared.run(*on, "3", "-o", "ray3", "-q")
    assert (code, out) == (1, "")
    assert err == (
        "error: the Ray cluster has 2 CPUs and 2 GPUs, and a worker takes 1 CPU and 3 GPUs\n"
    )
    if not torch.cuda.is_available():
        code, out, err = shared.run(*on, "0.5", "-o", "cuda", "-q")
        assert (code, out) == (1, "")
        assert err.startswith("error: --device cuda")
        assert err.count("\n") == 1


def test_plain_run_and_run_on_ray_go_on_with_each_other(folder: Path, shared: Session) -> None:
    write_pairs(60)
    np.save("images/00007.npy", np.full((3, 64), np.nan, np.float32))
    Path("texts/00009.npy").write_bytes(b"damaged")
    args = ["images", "texts", "--engine", "numpy"]
    on = ["--ray", shared.address]
    assert shared.run("batch", *args, "-o", "plain")[0] == 3
    code, out, err = shared.run("batch", *args, "-o", "ray", *on)
    assert (code, out) == (3, "ray\n")
    assert "58 done, 2 failed" in err
    assert "00009.npy: is not a .npy file" in err
    assert_same("plain", "ray")
    write_pairs(80, first=60)
    code, _, err = shared.run("batch", *args, "-o", "ray")
    assert code == 3
    assert "20 done, 58 skipped, 2 failed before" in err
    write_pairs(10, first=7)
    code, _, err = shared.run(
        "batch", *args, "-o", "ray", "--ray", shared.address, "--retry-failed"
    )
    assert code == 0, err
    assert "2 done" in err
    assert shared.run("batch", *args, "-o", "again", *on)[0] == 0
    for n in range(80):
        assert filecmp.cmp(f"ray/{n:05}.npy", f"again/{n:05}.npy", shallow=False)


def test_torch_keeps_the_number_of_threads_that_a_run_began_with(
    folder: Path, shared: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are shows in the last bits, and a Ray worker has one by default."""
    command = ["batch", "images", "texts", "--method", "transformer", "-o"]
    for count in (20, 40):
        write_pairs(count, D=256)
        monkeypatch.setitem(shared.env, "OMP_NUM_THREADS", "2" if count == 20 else "1")
        code, _, err = shared.run(*command, "later")
        assert code == 0, err
    code, _, err = shared.run(*command, "one")
    assert code == 0, err
    monkeypatch.setitem(shared.env, "OMP_NUM_THREADS", "2")
    for output, more in (("two", []), ("ray", ["--ray", shared.address])):
        code, _, err = shared.run(*command, output, *more)
        assert code == 0, err
    assert_same("two", "ray")
    numbers = [f"{n:05}.npy" for n in range(40)]
    assert filecmp.cmpfiles("two", "later", numbers, shallow=False)[1:] == ([], [])
    assert filecmp.cmpfiles("two", "one", numbers, shallow=False)[1] != []
    recorded = [json.loads(Path(run, "run.json").read_text()) for run in ("later", "one")]
    assert [run["computing"]["threads"] for run in recorded] == [2, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_and_all_of_ray(
    folder: Path, session: Session, number: signal.Signals
) -> None:
    write_pairs(2000)
    command = ["batch", "images", "texts", "-o", "ray", "--ray", "--workers", "1"]
    with session.start(*command) as running:
        until(lambda: session.processes("ray::Worker.work"), "no worker was seen at work")
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    until(lambda: not session.processes(), "Ray's processes outlive the run")
    assert not [name for name in files_of("ray") if "staging" in name or name.endswith(".part")]
    assert not list(Path(session.env["TMPDIR"]).glob("fray-*")), "Ray's logs are left"


def test_run_that_is_killed_leaves_nothing_of_ray(folder: Path, session: Session) -> None:
    write_pairs(2000)
    command = ["batch", "images", "texts", "-o", "ray", "--ray", "--workers", "1", "-q"]
    with session.start(*command) as running:
        until(lambda: session.processes("ray::Worker.work"), "no worker was seen at work")
        running.kill()
        running.communicate(timeout=60)
    until(lambda: not session.processes(), "Ray's processes outlive the run", seconds=90)
    until(lambda: not list(Path(session.env["TMPDIR"]).glob("fray-*")), "Ray's logs are left")
    code, _, err = session.run("batch", "images", "texts", "-o", "ray")
    assert code == 0, err
    assert "done" in err


def test_ray_whose_own_processes_die_ends_in_one_error(folder: Path, session: Session) -> None:
    """Ray may end the process that it serves without a word, or give nothing any more."""
    write_pairs(3000)
    with session.start("batch", "images", "texts", "-o", "ray", "--ray", "-q") as running:
        session.stopped_worker()  # the run cannot end without its chunk
        (raylet,) = session.processes(f"{os.path.dirname(ray.__file__)}/core/src/ray/raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
        out, err = running.communicate(timeout=60)
    for pid in session.processes("ray::Worker"):
        os.kill(pid, signal.SIGKILL)  # it stands still
    assert (running.returncode, out) == (1, "")
    assert err.startswith("error: --ray: ")
    assert err.count("\n") == 1
    until(lambda: not list(Path(session.env["TMPDIR"]).glob("fray-*")), "Ray's logs are left")
    code, _, err = session.run("batch", "images", "texts", "-o", "ray")
    assert code == 0, err


def test_impossible_ray_options_are_refused_before_anything_is_written(
    folder: Path, session: Session
) -> None:
    write_pairs(2)
    base = ["batch", "images", "texts", "-o", "out"]
    refusals = {
        ("--ray", "127.0.0.1:1"): (1, "--ray 127.0.0.1:1: no Ray cluster answers there"),
        ("--ray=nowhere",): (2, "--ray nowhere: expected HOST:PORT of a cluster's head, auto"),
        ("--gpus-per-worker", "1"): (2, "--gpus-per-worker is about the workers of --ray"),
        ("--ray", "--gpus-per-worker", "-1"): (2, "--gpus-per-worker -1: expected 0 or more"),
        ("--ray", "--device", "cuda"): (2, "--device cuda with --ray needs --gpus-per-worker"),
        ("--ray", "--shard", "1/2"): (2, "--ray excludes --merge and --shard"),
    }
    for args, (code, message) in refusals.items():
        ended, out, err = session.run(*base, *args)
        assert (ended, out) == (code, ""), err
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
        assert not os.path.exists("out")
