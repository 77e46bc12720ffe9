"""The command line in this process, many times, with nothing of pytest between."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusecli.batch.store import files
from fusecli.cli.main import main
from fusecli.features import leftovers
from tests.conftest import Outcome


@contextmanager
def _handlers_kept() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(*args: str) -> Outcome:
    """One run of the command line; any exception but an exit escapes."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2))
    with _handlers_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as stopped:
            main(list(args))
        sys.stdout.flush()
        sys.stderr.flush()
    texts = [stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err)]
    return Outcome(int(stopped.value.code or 0), *texts)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by relative path."""
    found = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def owners_die(patch: pytest.MonkeyPatch) -> None:
    """Let the next run take this process for another one, so that it sweeps what is left.

    It does not wait for the disk either: what it brings there is the same without.
    """
    patch.setattr(leftovers, "_lives", lambda pid, start: False)
    patch.setattr(files, "bring_to_disk", lambda folder, names: None)
    patch.setattr(os, "fsync", lambda descriptor: None)
