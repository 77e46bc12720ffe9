"""A sound pair of inputs, and what a folder holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(3, 8)).astype(np.float32)
TEXT = RNG.normal(size=(5, 8)).astype(np.float32)
ENDINGS = [".npy", ".npz", ".safetensors"]


def everything(folder: Path) -> dict[str, str]:
    """What is in a folder, hidden files too: names, and the hash of the contents or the link."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path)] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder"
    return found
