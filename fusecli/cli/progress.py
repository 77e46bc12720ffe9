"""What a running command prints: messages for people on stderr, results for scripts on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from fusecli.errors import StdoutError, printable

_PATIENCE = 1.0  # seconds before a progress bar appears; a short job has none
_PLAIN_EVERY = 30.0  # seconds between lines where stderr is no terminal


def print_path(path: str) -> None:
    """Print the path of a result as its own bytes, whatever the locale.

    On a terminal, escape sequences in the name are escaped, because a terminal would obey them.
    """
    name = printable(path).encode() if sys.stdout.isatty() else os.fsencode(path)
    print_about(path, name + b"\n")


def print_about(path: str, data: bytes) -> None:
    """Print to stdout what a script needs to know about a written file.

    Raises:
        StdoutError: stdout cannot be written; the message says that the file is complete.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StdoutError(error.errno, f"{error.strerror}; {path} is complete and stays") from None


class Progress:
    """Prints notes, and for long jobs a progress bar with the rate and the time left.

    Notes of a short job are printed at its end, so that an error is the only line.

    Args:
        verb: what is being done.
        quiet: say nothing.
        warnings: pass warnings on.
    """

    def __init__(self, verb: str, quiet: bool, warnings: bool = True) -> None:
        self._verb, self._quiet, self._warnings = verb, quiet, warnings
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        self._waiting: list[str] = []

    def tell(self, line: str) -> None:
        """Print one line for people; with --quiet only lines on failed pairs."""
        if self._quiet and line.startswith("failed:"):
            with self._whatever_stderr_does():
                print(printable(line), file=sys.stderr, flush=True)
        if not self._quiet and (self._warnings or not line.startswith("warning:")):
            self._waiting.append(printable(line))

    def _say(self) -> None:
        with self._whatever_stderr_does():
            for line in self._waiting:
                print(line, file=sys.stderr, flush=True)
        self._waiting.clear()

    @contextlib.contextmanager
    def _whatever_stderr_does(self) -> Iterator[None]:
        """Ignore errors of stderr, such as a closed terminal: the job goes on without notes."""
        try:
            yield
        except OSError:
            self._quiet = True

    def update(self, done: int, total: int) -> None:
        """Show how many samples of how many are done."""
        now = time.monotonic()
        if self._quiet or now - self._began < _PATIENCE:
            return
        self._say()
        if sys.stderr.isatty():
            with self._whatever_stderr_does():
                self._draw(done, total)
        elif now - self._said >= _PLAIN_EVERY:
            self._said = now
            rate = done / (now - self._began)
            left = f", {rate:,.0f}/s, {(total - done) / rate:,.0f} s left" if done else ""
            self.tell(f"{self._verb}: {done:,} of {total:,} pairs{left}")

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from fusecli.cli.console import ProgressBar

            self._bar = ProgressBar(self._verb, total)
        self._bar.update(done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            with self._whatever_stderr_does():
                self._bar.close()
        if error[0] is None:
            self._say()
