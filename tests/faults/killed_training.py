"""Trainings that kill themselves before a call on a file, and go on: `python -m` in a folder.

Each runs in a process that is forked from this one, which has imported torch and computed nothing:
a process that has computed in several threads cannot be forked safely.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import sklearn.metrics  # noqa: F401  here once, and not in each of the processes
import torch

import fusecli.training.train  # noqa: F401
from tests.batches import left_behind
from tests.faults.layer import Call, Layer
from tests.faults.running import contents, run
from tests.faults.training import TRAIN

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


def results() -> dict[str, bytes]:
    """The files of the run that have to be the same."""
    found = contents(Path("run"))
    kept = {n: d for n, d in found.items() if n in SAME or n.startswith("models/")}
    assert len(kept) > len(SAME)
    return kept


def _forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own; gives the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(600)  # a process that hangs fails the test, and does not hold it for ever
        code = 70
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "see above"
    return 0


def _killed(k: int) -> bool:
    """Whether a training was killed before its k-th call, and had not ended before."""

    def work() -> None:
        with _Killed(Path("run"), k).installed():
            done = run(*TRAIN)
        assert done.code == 0, done

    ended_by = _forked(work)
    assert ended_by in (0, signal.SIGKILL)
    return ended_by != 0


def _go_on() -> None:
    """The same command with --resume; where no run was begun, without."""
    done = run(*TRAIN, "--resume")
    if done.code:
        assert done.code == 2, done
        assert done.err == "error: --resume: run holds no run to go on with\n"
        done = run(*TRAIN)
    assert (done.code, done.err) == (0, ""), done


def main(calls: int, every: int) -> int:
    """Kill a training before each of some of its calls; gives the number of rounds.

    Args:
        calls: of a whole training, whose run lies in this folder.
        every: how many calls lie between two rounds.
    """
    torch.set_num_threads(1)
    whole, rounds = results(), 0
    for k in range(1, calls + 1, every):
        shutil.rmtree("run", ignore_errors=True)
        if not _killed(k):
            continue
        if rounds % 3 == 2:  # killed once more while it goes on
            _killed(max(1, k // 2))
        assert _forked(_go_on) == 0, k
        assert results() == whole, k
        assert left_behind(Path("run")) == [], k
        assert not Path("run/checkpoints").exists(), k
        rounds += 1
    return rounds


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2])))
