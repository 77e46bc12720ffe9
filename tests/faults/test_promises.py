"""docs/promises.md names only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_promise_names_a_test_that_exists() -> None:
    promises = [
        line
        for line in (ROOT / "docs/promises.md").read_text().splitlines()
        if line.startswith("- ")
    ]
    assert len(promises) > 20
    for promise in promises:
        match = re.fullmatch(r"- [A-Z].*: `(tests/\S+\.py)::(test_\w+)`", promise)
        assert match is not None, promise
        tree = ast.parse((ROOT / match[1]).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert match[2] in names, promise
