"""Calls on files fail, one at a time, in `train`, `evaluate` and `predict`.

One error line and exit 1, or the call did not matter; inputs are as before; the next run completes
to the same bytes.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.conftest import Outcome
from tests.faults.layer import REMOVALS, Call, Layer
from tests.faults.running import contents, run
from tests.faults.training import TRAIN

THOROUGH = "FUSECLI_FUZZ" in os.environ
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE)
PREDICT = ("predict", "run", "images", "texts", "-o", "said.csv", "--quiet", "--force")
EVALUATE = ("evaluate", "run", "images", "texts", "--labels", "labels.csv", "--quiet")


def one_line(done: Outcome, layer: Layer) -> None:
    assert done.code == 1, (layer.failed, done)
    assert done.err.startswith("error: "), (layer.failed, done)
    assert done.err.count("\n") == 1, (layer.failed, done)
    assert "Traceback" not in done.err, (layer.failed, done)
    assert "stdout: cannot be written" not in done.err, (layer.failed, done)


def check(args: tuple[str, ...], sample: int | None, within: str = "") -> int:
    """Fail some calls of a command, or all of them, in a folder where it has not run yet.

    Args:
        args: the command.
        sample: how many calls; None for all.
        within: only calls on files whose path has this in it.

    Returns:
        How many of them ended the run.
    """
    before, ended = contents(Path()), 0

    def only(call: Call) -> bool:
        return within in call.path

    with Layer(Path()).installed() as layer:
        whole = run(*args)
    assert whole.code == 0, whole
    complete = contents(Path())
    places = range(1, sum(map(only, layer.calls)) + 1)
    chance = random.Random(args[0])
    for k in places if sample is None else chance.sample(places, min(sample, len(places))):
        for name in set(contents(Path())) - set(before):
            os.unlink(name)
        if args[0] == "train":
            shutil.rmtree("run")
        number = ERRORS[k % len(ERRORS)]
        faulty = Layer(Path(), k, number, only)
        with faulty.installed():
            done = run(*args)
        if done.code == 0:
            assert done.out == whole.out, (faulty.failed, done)
            now = contents(Path())
            assert complete == {name: now.get(name) for name in complete}, faulty.failed
        else:
            ended += 1
            one_line(done, faulty)
        now = contents(Path())
        assert before == {name: now[name] for name in before}, faulty.failed
        left = list(Path().rglob(".fusecli-*"))
        # Only what could not be removed is there, until the process that made it has ended.
        assert len(left) <= (faulty.failed is not None and faulty.failed.name in REMOVALS)
        for path in left:
            path.unlink()
        again = run(*args)
        assert (again.code, again.out) == (0, whole.out), (faulty.failed, done, again)
        assert contents(Path()) == complete, (faulty.failed, done)
    return ended


@pytest.mark.slow
def test_calls_of_predict_fail(folder_of_run: Path) -> None:
    Path("said.csv").unlink()
    assert check(PREDICT, 20, "/run/") > 10


@pytest.mark.slow
def test_calls_of_evaluate_fail(folder_of_run: Path) -> None:
    Path("said.csv").unlink()
    assert check(EVALUATE, None if THOROUGH else 8, "/run/") > 4


@pytest.mark.slow
def test_every_call_of_predict_fails(folder_of_run: Path) -> None:
    Path("said.csv").unlink()
    assert check(PREDICT, None) > 20


@pytest.mark.slow
def test_calls_of_a_training_fail(folder_of_run: Path) -> None:
    Path("said.csv").unlink()
    shutil.rmtree("run")
    assert check(TRAIN, 200 if THOROUGH else 12) > 3
