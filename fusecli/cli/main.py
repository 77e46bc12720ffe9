"""The edge of the program: signals, errors and exit codes. Imports nothing until it is ready.

Exit codes: 0 done; 1 the data or the machine said no; 2 the command line is wrong;
130 and 143 stopped by Ctrl-C and by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception, so that nothing on the way out catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    args = sys.argv[1:] if argv is None else argv
    try:
        # Before the first heavy import, so that a signal in the middle of it is silent too.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        code = _run(args)
        sys.stdout.flush()
    except Stopped as stopped:
        code = stopped.exit_code
    except BrokenPipeError:
        # The reader of stdout has gone; a second failure while Python shuts down is kept off.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


def _run(args: list[str]) -> int:
    from fusecli.cli.app import app
    from fusecli.errors import FuseError

    try:
        code = app(_with_report_values(args), standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FuseError as error:
        if "--debug" in args:
            raise
        _say(str(error))
        return error.exit_code
    except Exception as error:
        # Typer exports no base class of its usage errors; they all can say themselves.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        known = [
            command.callback.__name__ for command in app.registered_commands if command.callback
        ]
        command = f"fusecli {args[0]}" if args and args[0] in known else "fusecli"
        _say(f"{message().rstrip('.')} (see {command} --help)")
        return int(getattr(error, "exit_code", 2))


def _with_report_values(args: list[str]) -> list[str]:
    """Give a bare --report its value: what follows is one only if it ends in .json.

    Otherwise `fusecli fuse --report img.npy txt.npy` would take the image for a report.
    """
    out: list[str] = []
    for index, arg in enumerate(args):
        following = args[index + 1] if index + 1 < len(args) else ""
        bare = arg == "--report" and not following.lower().endswith(".json")
        out.append("--report=table" if bare else arg)
    return out


def printable(text: str) -> str:
    """Text on one line, whatever a file's name contains."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _say(message: str) -> None:
    print(printable(f"error: {message}"), file=sys.stderr)
