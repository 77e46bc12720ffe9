"""What the tests of written files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.features.written import IMAGE, TEXT


@pytest.fixture
def inputs(folder: Path) -> Path:
    """A working directory with an image, a text and weights."""
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    return folder
