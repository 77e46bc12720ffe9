"""The command line as a function, in this process and in one of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Torch's threads wait actively for each other: two test processes with all cores each take longer
# than with one thread each. numpy's engine keeps its threads, which share the work of a job.
if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(os.cpu_count()))

import torch

from fusecli.cli.main import main


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-case",
        action="store_true",
        help="of each test function run only the first case; `make quick` uses it",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import a file of which every test has a mark that is left out."""
    left_out = [mark for mark in ("slow", "ray") if f"not {mark}" in config.option.markexpr]
    if collection_path.suffix != ".py" or not left_out:
        return None
    lines = collection_path.read_text(encoding="utf-8").splitlines()
    marks = {f"pytestmark = pytest.mark.{mark}" for mark in left_out}
    return True if marks.intersection(lines) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--one-case"):
        return
    kept = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
    dropped = [item for item in items if kept[item.nodeid.partition("[")[0]] is not item]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if kept[item.nodeid.partition("[")[0]] is item]


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """`cli("fuse", ...)`: the command line in this process; any exception but an exit escapes.

    A command that hangs is stopped. The time is many times what a command takes on a machine that
    does other work as well: ten seconds were too few for one that imports torch and begins a batch.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("it hangs"))

    def run(*args: str, seconds: int = 100) -> Outcome:
        capsys.readouterr()
        signal.alarm(seconds)
        with pytest.raises(SystemExit) as stopped:
            main(list(args))
        signal.alarm(0)
        said = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), said.out, said.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def without_privileges() -> None:
    """Let a child of root be held to permissions as everybody is (for `preexec_fn`)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails harmlessly without root


@pytest.fixture
def program() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`program("fuse", ...)`: the command line in a process of its own; bytes in, bytes out."""

    def run(*args: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
        settings: dict[str, Any] = {"capture_output": True, "timeout": 50, **options}
        settings["env"] = os.environ | dict(settings.get("env") or {})
        done: subprocess.CompletedProcess[bytes]
        done = subprocess.run([sys.executable, "-m", "fusecli", *args], **settings)
        return done

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of small products wait for each other as soon as the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
