"""`kill -9` of a training before any call on a file: it goes on to the same weights.

Each round is a process that is forked from this one, so that torch is imported only once, and
kills itself before its k-th call. The power stays: what was written is there.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.batches import left_behind
from tests.conftest import Outcome
from tests.faults.layer import Call, Layer
from tests.faults.running import contents, run
from tests.faults.training import TRAIN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
THOROUGH = "FUSECLI_FUZZ" in os.environ
ROUNDS = 8  # of the calls of a training
SAME = ("weights.safetensors", "metrics.json", "split.csv", "predictions.csv", "report.md")


class _Killed(Layer):
    """Kills this process before the k-th call."""

    def __init__(self, root: Path, k: int) -> None:
        super().__init__(root)
        self._k = k

    def count(self, name: str, path: str) -> None:
        self.calls.append(Call(name, path))
        if len(self.calls) == self._k:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(k: int, *args: str) -> bool:
    """Run a command in a process that is killed before its k-th call on a file; whether it was."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(600)  # a process that hangs fails the test, and does not hold it for ever
        code = 70
        try:
            with _Killed(Path("run"), k).installed():
                code = run(*args).code
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def results() -> dict[str, bytes]:
    found = contents(Path("run"))
    kept = {n: d for n, d in found.items() if n in SAME or n.startswith("models/")}
    assert len(kept) > len(SAME)
    return kept


def goes_on() -> Outcome:
    """The same command with --resume; where no run was begun, without."""
    done = run(*TRAIN, "--resume")
    if done.code:
        assert done.code == 2, done
        assert done.err == "error: --resume: run holds no run to go on with\n"
        done = run(*TRAIN)
    return done


def test_training_that_is_killed_goes_on_to_the_same_bytes(
    folder_of_run: Path, one_thread: None
) -> None:
    whole = results()
    shutil.rmtree("run")
    with Layer(Path("run")).installed() as layer:
        assert run(*TRAIN).code == 0
    assert results() == whole
    calls = len(layer.calls)
    assert calls > 50
    every = 1 if THOROUGH else max(1, calls // ROUNDS)
    rounds = 0
    for k in range(1, calls + 1, every):
        shutil.rmtree("run", ignore_errors=True)
        if not killed(k, *TRAIN):
            continue
        if rounds % 3 == 2:  # killed once more while it goes on
            killed(max(1, k // 2), *TRAIN)
        done = goes_on()
        assert (done.code, done.err) == (0, ""), (k, done)
        assert results() == whole, k
        assert left_behind(Path("run")) == [], k
        assert not Path("run/checkpoints").exists(), k
        rounds += 1
    assert rounds >= ROUNDS - 1
