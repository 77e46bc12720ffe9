"""What the tests of batches share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.runs import COUNT
from tests.batches import make_pairs


@pytest.fixture
def pairs(folder: Path) -> Path:
    """`images` and `texts` in the working directory."""
    make_pairs(folder, COUNT)
    return folder
