"""`make quick` is a sample of every package."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_quick_runs_tests_of_every_package():
    quick = ["--co", "-qq", "--one-case", "-m", "not slow and not ray"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=", *quick, "-q", str(TESTS)],
        capture_output=True, text=True, cwd=TESTS.parent, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    counts = Counter()
    for line in done.stdout.splitlines():
        path, _, number = line.partition(": ")
        if number:
            counts[Path(path).parts[1]] += int(number)
    packages = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert {name for name in packages if counts[name] >= 15} == packages
    assert sum(counts.values()) < 1500  # and of each test one case, not all
    assert counts["test_ray.py"] == counts["test_wheel.py"] == 0
