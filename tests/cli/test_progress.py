"""Lines of progress where stderr is no terminal."""

from __future__ import annotations

import time

import pytest

from fusecli.cli.progress import Progress


def test_time_left_is_said_once_something_is_done(
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
