"""Every call on a file in a batch can fail, one at a time.

A pair whose file cannot be read fails alone (exit 3). Anything else that matters ends the run
in one error line (exit 1). What was done stays, inputs are as before, and further runs complete
to the same results.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.batches import left_behind, make_pairs
from tests.faults.batch_jobs import BATCH, LAYOUTS, results
from tests.faults.layer import Layer
from tests.faults.running import contents, owners_die, run

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE)
COUNT = 4


@pytest.fixture
def pairs(folder: Path) -> Path:
    make_pairs(folder, COUNT)
    return folder


THOROUGH = "FUSECLI_FUZZ" in os.environ


def check_every_call(
    layout: str, resumed: bool, errors: tuple[int, ...], every: int = 1, first: int | None = None
) -> int:
    """Fail each call of a run, or one of so many; gives how many calls a run makes."""
    if first is None:
        first = (resumed + len(layout)) % every
    args = (*BATCH, *LAYOUTS[layout])
    out = Path("out")
    if resumed:  # the first half is there
        shutil.copytree("texts", "all")
        for path in sorted(Path("texts").rglob("*.npy"))[COUNT // 2 :]:
            path.unlink()
        assert run(*args).code == 0
        shutil.rmtree("texts")
        shutil.move("all", "texts")
        shutil.move("out", "begun")
    inputs = contents(Path("images")) | contents(Path("texts"))

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if resumed:
            shutil.copytree("begun", out)

    begin()
    with Layer(Path()).installed() as layer:
        assert run(*args).code == 0
    expected = results(out)
    assert len(expected) == COUNT
    number_of_calls = len(layer.calls)
    for k in range(1 + first, number_of_calls + 1, every):
        number = errors[k % len(errors)]
        begin()
        before = results(out) if resumed and layout == "files" else {}
        faulty = Layer(Path(), k, number)
        with faulty.installed():
            done = run(*args)
        what = faulty.failed, done
        assert done.code in (0, 1, 3), what
        assert "Traceback" not in done.err, what
        assert "stdout" not in done.err, what
        if done.code == 1:
            assert done.err.startswith("error: "), what
            assert done.err.count("\n") == 1, what
        if done.code == 0 and faulty.failed is not None:
            assert results(out) == expected, what
        for name, data in before.items():
            assert (out / name).read_bytes() == data, what
        with pytest.MonkeyPatch.context() as patch:
            owners_die(patch)
            again = run(*args)
            if done.code == 3:
                again = run(*args, "--retry-failed")
            assert again.code == 0, (what, again)
        assert results(out) == expected, what
        assert left_behind(out) == [], what
        assert contents(Path("images")) | contents(Path("texts")) == inputs, what
    return number_of_calls


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_call_of_a_batch_fails(pairs: Path, layout: str, resumed: bool) -> None:
    """One call of three; all of them are for the slow tests."""
    assert check_every_call(layout, resumed, ERRORS, every=3) > 30


@pytest.mark.slow
@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_call_of_a_batch_fails_in_every_way(
    pairs: Path, layout: str, resumed: bool, number: int
) -> None:
    """The errors share the calls among them; `make fuzz` lets each call fail in every way."""
    share = 1 if THOROUGH else len(ERRORS)
    first = ERRORS.index(number) % share
    assert check_every_call(layout, resumed, (number,), every=share, first=first) > 30


@pytest.mark.parametrize("number", ERRORS)
def test_pair_that_cannot_be_read_fails_alone(pairs: Path, number: int) -> None:
    assert run(*BATCH).code == 0
    expected = results(Path("out"))
    shutil.rmtree("out")
    broken = os.path.realpath("texts/1/0001.npy")
    read = 0
    # Every read of this file fails: those after the first too.
    for name in ("read", "readv", "pread", "open"):
        layer = Layer(
            Path(), 1, number, lambda call, n=name: call.path == broken and call.name == n
        )
        with layer.installed():
            done = run(*BATCH)
        read += layer.failed is not None
        if layer.failed is not None and done.code != 0:
            assert done.code == 3
            assert len(results(Path("out"))) == COUNT - 1
            assert run(*BATCH, "--retry-failed").code == 0
        assert results(Path("out")) == expected
        shutil.rmtree("out")
    assert read
