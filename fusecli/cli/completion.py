"""Completion of commands, options and choices by the shell, with typer's scripts for each shell."""

from __future__ import annotations

import os
from typing import Literal, get_args

import typer

from fusecli.errors import UsageError

Shell = Literal["bash", "zsh", "fish", "powershell", "pwsh"]

PROGRAM = "fusecli"
VARIABLE = "_FUSECLI_COMPLETE"  # set by the shell when it asks for completions
DETECTED = "detect"  # stands for the running shell, where none is named
SHELLS: tuple[Shell, ...] = get_args(Shell)


def prepare() -> None:
    """Register how typer answers completion scripts. Call it before they ask for completions."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def show(given: str) -> None:
    """Print the script that a shell reads.

    Args:
        given: the name of a shell, or `DETECTED`.

    Raises:
        UsageError: the shell is not known.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    shell = _named(given, "--show-completion")
    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))


def install(given: str) -> None:
    """Add the script to the shell's start files.

    Args:
        given: the name of a shell, or `DETECTED`.

    Raises:
        UsageError: the shell is not known.
        OSError: a start file cannot be written.
    """
    from typer.completion import install as install_for  # type: ignore[attr-defined]

    shell = _named(given, "--install-completion")
    _, path = install_for(shell=shell, prog_name=PROGRAM, complete_var=VARIABLE)
    typer.echo(path)
    typer.echo(f"{shell} completes fusecli in every terminal that is opened from now on", err=True)


def _named(given: str, option: str) -> Shell:
    """The shell to write for, from what the command line says."""
    found = _running_shell() if given == DETECTED else given
    for shell in SHELLS:
        if found == shell:
            return shell
    what = f"{option} {found}" if given != DETECTED else f"{option}: cannot tell which shell runs"
    raise UsageError(f"{what}: expected one of {', '.join(SHELLS)}")


def _running_shell() -> str:
    """The shell that runs this process, or the user's login shell if that is unknown."""
    import shellingham  # type: ignore[import-untyped] # comes with typer

    try:
        return str(shellingham.detect_shell()[0])
    except shellingham.ShellDetectionFailure:
        return os.path.basename(os.environ.get("SHELL", ""))
