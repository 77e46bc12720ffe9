"""Lines of progress where stderr is no terminal."""

from __future__ import annotations

import errno
import io
import os
import time

import numpy as np
import pytest

from fusecli.cli.progress import Progress


def test_time_left_is_printed_after_the_first_pairs_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("batch", quiet=False) as progress:
        for now, done in ((40.0, 0), (80.0, 200)):  # noqa: B007 - the clock reads it
            progress.update(done, 1000)
    assert capsys.readouterr().err == (
        "batch: 0 of 1,000 pairs\nbatch: 200 of 1,000 pairs, 2/s, 320 s left\n"
    )


@pytest.mark.slow
def test_a_path_is_escaped_on_a_terminal_and_raw_in_a_pipe(program, tmp_path):
    for side in ("i", "t"):
        np.save(tmp_path / f"{side}.npy", np.ones((2, 8), np.float32))
    command = ("fuse", "i.npy", "t.npy", "-q", "-f", "-o", "a\x1b[31m.npy")
    assert program(*command, cwd=tmp_path).stdout == b"a\x1b[31m.npy\n"
    ours, theirs = os.openpty()
    done = program(*command, cwd=tmp_path, capture_output=False, stdout=theirs)
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert (done.returncode, shown) == (0, b"a\\x1b[31m.npy\r\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_job_succeeds_even_if_stderr_cannot_be_written(program, tmp_path):
    for side in ("i", "t"):
        np.save(tmp_path / f"{side}.npy", np.ones((2, 8), np.float32))
    with open("/dev/full", "w") as full:
        done = program(
            "fuse", "i.npy", "t.npy", cwd=tmp_path, capture_output=False, stdout=-1, stderr=full
        )
    assert (done.returncode, done.stdout) == (0, b"t.fused.npy\n")


def test_a_job_goes_on_if_its_progress_bar_cannot_be_drawn(monkeypatch):
    class Closed(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise OSError(errno.EIO, "the terminal has been closed")

    monkeypatch.setattr("fusecli.cli.progress._PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr", Closed())
    with Progress("fuse", quiet=False) as progress:
        progress.tell("a note")
        progress.update(1, 3)
        progress.update(2, 3)
