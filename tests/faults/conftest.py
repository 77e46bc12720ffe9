"""What several of these tests begin with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.faults.running import run
from tests.faults.training import TRAIN, N


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, labels, and a run."""
    here = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    lines = ["id,label"]
    for side, tokens, width in (("images", 3, 6), ("texts", 2, 5)):
        (here / side).mkdir()
        for n in range(N):
            array = rng.standard_normal((tokens, width)).astype(np.float32)
            np.save(here / side / f"{n:02}.npy", array)
    lines += [f"{n:02},{'yes' if n % 2 else 'no'}" for n in range(N)]
    (here / "labels.csv").write_text("\n".join(lines) + "\n")
    before = os.getcwd()
    os.chdir(here)
    try:
        done = run(*TRAIN)
        assert done.code == 0, done
        # What a later run of the same process needs is loaded, and is no memory of a record's.
        assert run("predict", "run", "images", "texts", "-o", "said.csv", "-q").code == 0
    finally:
        os.chdir(before)
    return here


@pytest.fixture
def folder_of_run(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def inputs(folder: Path) -> Path:
    """One pair of files, `image.npy` and `text.npy`."""
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((3, 16)).astype(np.float32))
    np.save("text.npy", rng.standard_normal((5, 16)).astype(np.float32))
    return folder
