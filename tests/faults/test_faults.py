"""Every call on a file can fail, one at a time: what `fuse`, `init` and `batch` make of it.

For each call of a run: the run ends in one error line and the right exit code, or succeeds
because the call does not matter; nothing is lost; nothing is left behind; and the next run
completes to the same bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Outcome
from tests.faults.layer import REMOVALS, Layer
from tests.faults.running import contents, owners_die, run

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE)
MOST_CALLS = 2000  # a run that makes more is not one of these


@pytest.fixture
def inputs(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        "image.npz",
        image=rng.standard_normal((4, 3, 16)).astype(np.float32),
        image_mask=np.ones((4, 3), bool),
    )
    np.save("text.npy", rng.standard_normal((4, 5, 16)).astype(np.float32))
    assert run("init", "-o", "w.safetensors", "--dim", "16").code == 0
    return folder


def failures(layer: Callable[[int, int], Layer], errors: tuple[int, ...]) -> Iterator[Layer]:
    """A layer for each call of a run and each error; stops when a run has no more calls."""
    for k in range(1, MOST_CALLS):
        for number in errors:
            fresh = layer(k, number)
            yield fresh
            if fresh.failed is None:
                return
    pytest.fail("the run does not end")


def one_line(done: Outcome, layer: Layer) -> None:
    """Exit 1 with one error line that names no stream which did not fail."""
    assert done.code == 1, (layer.failed, done)
    assert done.err.startswith("error: "), (layer.failed, done)
    assert done.err.count("\n") == 1, (layer.failed, done)
    assert "stdout: cannot be written" not in done.err, (layer.failed, done)
    assert "Traceback" not in done.err, (layer.failed, done)
    assert done.out == "", (layer.failed, done)


FUSE = ("fuse", "image.npz", "text.npy", "--weights", "w.safetensors", "--quiet", "--force")
FUSE_JOBS: dict[str, tuple[str, ...]] = {
    "npy": (*FUSE, "-o", "out.npy"),
    "npz": (*FUSE, "-o", "out.npz", "--pool", "mean"),
    "all": (*FUSE, "-o", "o.safetensors", "--attention", "maps.npy", "--report", "r.json"),
    "stdout": (*FUSE, "-o", "-", "--report", "r.json"),
    "init": ("init", "-o", "new.safetensors", "--dim", "16", "--force"),
}


def _check_every_call_of_a_job(job: str, older: bool, errors: tuple[int, ...]) -> int:
    args, before = FUSE_JOBS[job], contents(Path())
    with Layer(Path()).installed() as layer:
        assert run(*args).code == 0
    assert len(layer.calls) > 3
    complete = contents(Path())
    made = set(complete) - set(before)
    assert made or job == "stdout"
    count = 0
    for faulty in failures(lambda k, number: Layer(Path(), k, number), errors):
        count += 1
        for name in made:
            if older:
                Path(name).write_text("older")
            elif os.path.exists(name):
                os.unlink(name)
        start = contents(Path())
        with faulty.installed():
            done = run(*args)
        if done.code == 0:
            now = contents(Path())
            assert complete == {name: now[name] for name in complete}, faulty.failed
        else:
            one_line(done, faulty)
            assert done.err.startswith("error: "), done
            left = set(contents(Path())) - set(start)
            # Only what could not be removed is there, under a name that says whose it is.
            assert len(left) <= (faulty.failed is not None and faulty.failed.name in REMOVALS)
            now = contents(Path())
            assert start == {name: now[name] for name in start}, faulty.failed
        with pytest.MonkeyPatch.context() as patch:
            owners_die(patch)
            assert run(*args).code == 0
        assert contents(Path()) == complete, faulty.failed
    return count


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("job", FUSE_JOBS)
def test_every_call_of_a_job_fails(inputs: Path, job: str, older: bool) -> None:
    assert _check_every_call_of_a_job(job, older, (errno.EIO,)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("job", FUSE_JOBS)
def test_every_call_of_a_job_fails_in_every_way(inputs: Path, job: str, older: bool) -> None:
    assert _check_every_call_of_a_job(job, older, ERRORS) > 20


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("name", ["image.npz", "text.npy", "w.safetensors"])
def test_read_that_fails_names_its_file(inputs: Path, name: str, number: int) -> None:
    """Not stdout, and not another input."""
    path = str(inputs.resolve() / name)
    for k in range(1, MOST_CALLS):
        layer = Layer(inputs, k, number, lambda call: call.path == path and "read" in call.name)
        with layer.installed():
            done = run(*FUSE, "-o", "out.npy")
        if layer.failed is None:
            break
        one_line(done, layer)
        assert done.err.startswith(f"error: {name}"), done.err
        assert os.strerror(number) in done.err, done.err
    assert k > 1
    assert done.code == 0
