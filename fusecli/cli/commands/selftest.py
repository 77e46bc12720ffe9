"""`fusecli selftest`: does the installed tool compute what it should on this machine?"""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fusecli.cli.option_groups import QuietJsonProgram

if TYPE_CHECKING:
    from fusecli.bench.selftest import CheckResult


def selftest(program: QuietJsonProgram) -> None:
    """Check the installation on this machine, on every device; exit 0 if all is right, else 1."""
    from fusecli.bench.selftest import run_selftest

    def tell(result: "CheckResult") -> None:
        if not program.quiet:
            verdict = "ok    " if result.passed else "FAILED"
            line = f"{verdict}  {result.where:<12}  {result.check} (deviation {result.worst:.1e})"
            print(line, file=sys.stderr, flush=True)

    results = run_selftest(tell)
    passed = all(result.passed for result in results)
    if program.as_json:
        listed = [asdict(result) for result in results]
        sys.stdout.write(json.dumps({"passed": passed, "checks": listed}, indent=2) + "\n")
    else:
        typer.echo("ok" if passed else "failed")
    if not passed:
        raise typer.Exit(1)
