"""The edge of the program: signals, errors and exit codes. Imports nothing until it is ready.

Exit codes: 0 done; 1 bad input or environment; 2 the command line is wrong; 3 a batch with
failed pairs; 130, 143 and 129 stopped by Ctrl-C, by SIGTERM and by a terminal that closes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import time
from typing import Any, NoReturn

from fusecli.errors import LONGEST_LINE, StdoutError, out_of_memory, printable, shortened

# A shell or a wrapper may pass the same Ctrl-C on; a person does not press it again so soon.
_SECOND_AFTER = 0.25  # seconds

_STOPPING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    _STOPPING.append(signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception, so that nothing on the way out catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class _Stdout(io.FileIO):
    """Standard output whose failed writes raise `StdoutError`, unlike those of files."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StdoutError(error.errno, error.strerror) from None


def run() -> NoReturn:
    """Run the program in a process of its own.

    Two things that help long-running programs cost a small job a seventh of its time: the search
    for reference cycles after every 700 objects, and the clean-up of all modules at the end. Both
    are turned off.
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
    debug = "--debug" in args
    # A stream that the caller has closed is None, and printing to None prints to the other.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    _name_stdout()
    code: int
    try:
        # Before the first heavy import, so that a signal in the middle of it is silent too.
        for number in _STOPPING:
            signal.signal(number, _stop)
        if "--help" not in args:
            os.getcwd()  # torch's libraries end the process where there is no working folder
        code = _run(args)
        sys.stdout.flush()
    except Stopped as stopped:
        code = stopped.exit_code
    except BrokenPipeError:
        _abandon_stdout()  # the reader has closed the pipe and needs no message
        code = 1
    except StdoutError as error:
        _abandon_stdout()
        say_error(f"stdout: cannot be written: {error.strerror}", debug)
        code = 1
    except OSError as error:
        say_error(_system_error(error), debug)
        code = 1
    sys.exit(code)


def _name_stdout() -> None:
    """Make failed writes to stdout raise `StdoutError`, and escape characters it cannot encode."""
    stdout = sys.stdout
    if stdout is not sys.__stdout__ or not isinstance(stdout, io.TextIOWrapper):
        return  # a test or another program has replaced stdout
    stdout.flush()
    raw = _Stdout(stdout.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stdout.encoding,
        errors="backslashreplace",
        line_buffering=stdout.line_buffering,
        write_through=stdout.write_through,
    )


def _system_error(error: OSError) -> str:
    """The message for an OSError that no other code has turned into a FuseError."""
    try:
        os.getcwd()
    except OSError:
        return "the working folder has been removed: change to another one"
    where = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
    return f"{where}{error.strerror or error}"


def _abandon_stdout() -> None:
    """Prevent a second failure while Python shuts down."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(number: int, frame: Any) -> None:
    """Handle the first signal: stop and clean up; a second Ctrl-C ends the clean-up too."""
    begun = time.monotonic()

    def again(number: int, frame: Any) -> None:
        if number != getattr(signal, "SIGHUP", None) and time.monotonic() - begun > _SECOND_AFTER:
            os._exit(128 + number)

    for other in _STOPPING:
        signal.signal(other, again)
    raise Stopped(number)


def _run(args: list[str]) -> int:
    from fusecli.cli.app import COMMANDS, make_app
    from fusecli.errors import FuseError

    try:
        app = make_app(args[0] if args else None)
        if "_FUSECLI_COMPLETE" in os.environ:
            from fusecli.cli.completion import prepare

            prepare()
        code = app(_with_values(args), prog_name="fusecli", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FuseError as error:
        say_error(str(error), "--debug" in args)
        return error.exit_code
    except Exception as error:
        why = out_of_memory(error)
        if why is not None:
            say_error(f"there is not enough memory for this job: {why}", "--debug" in args)
            return 1
        # Typer exports no base class of its usage errors; all of them have `format_message`.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        command = f"fusecli {args[0]}" if args and args[0] in COMMANDS else "fusecli"
        say_error(f"{message().rstrip('.')} (see {command} --help)", "--debug" in args)
        return int(getattr(error, "exit_code", 2))


def _with_values(args: list[str]) -> list[str]:
    """Add the default value to options whose value was left out.

    The next argument is the option's value only if it looks like one.

    Otherwise `fusecli fuse --report img.npy txt.npy` would take the image for a report.
    """
    out: list[str] = []
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg == "--report" and not following.lower().endswith(".json"):
            arg = "--report=table"
        elif arg == "--ray" and following not in ("auto", "local"):
            _, _, port = following.rpartition(":")
            arg = arg if port.isdigit() and "/" not in following else "--ray=local"
        elif arg in ("--install-completion", "--show-completion") and following[:1] in ("", "-"):
            arg = f"{arg}=detect"
        out.append(arg)
    return out


def say_error(message: str, debug: bool = False) -> None:
    """Print one line on stderr, after the traceback if --debug is given."""
    if debug:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError):  # nobody reads it: the exit code is what remains
        line = printable(shortened(f"error: {message}", LONGEST_LINE))
        print(line, file=sys.stderr, flush=True)
