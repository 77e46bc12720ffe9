"""`kill -9` of a training before any call on a file: it goes on to the same weights.

The power stays: what was written is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.layer import Layer
from tests.faults.running import run
from tests.faults.training import TRAIN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
THOROUGH = "FUSECLI_FUZZ" in os.environ
ROUNDS = 8  # of the calls of a training
REPOSITORY = Path(__file__).parents[2]


def test_training_that_is_killed_goes_on_to_the_same_bytes(
    folder_of_run: Path, one_thread: None
) -> None:
    shutil.rmtree("run")
    with Layer(Path("run")).installed() as layer:
        assert run(*TRAIN).code == 0
    calls = len(layer.calls)
    assert calls > 50
    every = 1 if THOROUGH else max(1, calls // ROUNDS)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed_training", str(calls), str(every)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= ROUNDS - 1
