"""`fusecli selftest`: does the installed tool compute what it should on this machine?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fusecli.bench.selftest import CheckResult


def selftest(
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No lines on stderr, only the verdict.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Check the installation on this machine, on every device; exit 0 if all is right, else 1."""
    from fusecli.bench.selftest import run_selftest

    def tell(result: CheckResult) -> None:
        if not quiet:
            verdict = "ok    " if result.passed else "FAILED"
            line = f"{verdict}  {result.where:<12}  {result.check} (deviation {result.worst:.1e})"
            print(line, file=sys.stderr, flush=True)

    results = run_selftest(tell)
    passed = all(result.passed for result in results)
    if as_json:
        listed = [asdict(result) for result in results]
        sys.stdout.write(json.dumps({"passed": passed, "checks": listed}, indent=2) + "\n")
    else:
        typer.echo("ok" if passed else "failed")
    if not passed:
        raise typer.Exit(1)
