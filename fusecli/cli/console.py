"""The terminal: how wide it is, lines with a label, and the progress bar. Imports rich."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from fusecli.errors import printable, shortened

_PLAIN_WIDTH = 120  # where the output is no terminal: wide enough to keep rows on one line


def console_on(stream: Any) -> Console:
    """A console on stdout or stderr."""
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def print_line(console: Console, label: str, text: str) -> None:
    """A bold label and its text."""
    line = Text.assemble((f"{printable(shortened(label, 200))}: ", "bold"), printable(text))
    console.print(line, soft_wrap=True)


def escape(text: str) -> str:
    """Names from files, harmless to rich and to the terminal."""
    return escape_markup(printable(shortened(text, 200)))


class ProgressBar:
    """A bar with count, rate and time left, on stderr."""

    def __init__(self, verb: str, total: int) -> None:
        self._progress = RichProgress(
            TextColumn(verb),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            console=console_on(sys.stderr),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(verb, total=total)

    def update(self, done: int) -> None:
        """So many are done."""
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()
