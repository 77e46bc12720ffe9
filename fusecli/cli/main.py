"""The edge of the program: signals, errors and exit codes. Imports nothing until it is ready.

Exit codes: 0 done; 1 the data or the machine said no; 2 the command line is wrong;
130, 143 and 129 stopped by Ctrl-C, by SIGTERM and by a terminal that closes.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import signal
import sys
from typing import Any, NoReturn

# How writing to a file behind stdout fails; such an error carries no file name.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_STOPPING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    _STOPPING.append(signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception, so that nothing on the way out catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def run() -> NoReturn:
    """Run the program in a process of its own.

    What Python does for long-running programs costs a small job a seventh of its time: the
    search for reference cycles after every 700 objects, and at the end taking all modules apart.
    """
    gc.set_threshold(100_000)
    code: Any = 1
    try:
        main()
    except SystemExit as error:
        code = error.code
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    args = sys.argv[1:] if argv is None else argv
    # A stream that the caller has closed is None, and printing to None prints to the other.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        # Before the first heavy import, so that a signal in the middle of it is silent too.
        for number in _STOPPING:
            signal.signal(number, _stop)
        code = _run(args)
        sys.stdout.flush()
    except Stopped as stopped:
        code = stopped.exit_code
    except BrokenPipeError:
        _abandon_stdout()  # its reader has gone, and knows
        code = 1
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        _abandon_stdout()
        say_error(f"stdout: cannot be written: {error.strerror}")
        code = 1
    sys.exit(code)


def _abandon_stdout() -> None:
    """Keep off a second failure while Python shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(number: int, frame: Any) -> None:
    for other in _STOPPING:  # cleaning up is not interrupted
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def _run(args: list[str]) -> int:
    from fusecli.cli.app import COMMANDS, make_app
    from fusecli.errors import FuseError

    try:
        app = make_app(args[0] if args else None)
        code = app(_with_values(args), standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FuseError as error:
        say_error(str(error), "--debug" in args)
        return error.exit_code
    except MemoryError as error:
        why = str(error) or "an allocation failed"
        say_error(f"there is not enough memory for this job: {why}", "--debug" in args)
        return 1
    except Exception as error:
        # Typer exports no base class of its usage errors; they all can say themselves.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        command = f"fusecli {args[0]}" if args and args[0] in COMMANDS else "fusecli"
        say_error(f"{message().rstrip('.')} (see {command} --help)")
        return int(getattr(error, "exit_code", 2))


def _with_values(args: list[str]) -> list[str]:
    """Give a bare --report or --ray its value: what follows is one only if it looks like one.

    Otherwise `fusecli fuse --report img.npy txt.npy` would take the image for a report.
    """
    out: list[str] = []
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg == "--report" and not following.lower().endswith(".json"):
            arg = "--report=table"
        elif arg == "--ray" and following not in ("auto", "local"):
            _, _, port = following.rpartition(":")
            arg = arg if port.isdigit() and "/" not in following else "--ray=local"
        out.append(arg)
    return out


def say_error(message: str, debug: bool = False) -> None:
    """One line on stderr, under the traceback if that was asked for."""
    from fusecli.errors import LONGEST_LINE, printable, shortened

    if debug:
        import traceback

        traceback.print_exc()
    print(printable(shortened(f"error: {message}", LONGEST_LINE)), file=sys.stderr)
