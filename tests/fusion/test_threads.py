"""Torch's number of threads shows in the last bits: every thread that calls it has the run's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# The process begins with one thread and the run has two, as when a run is finished elsewhere.
_SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import numpy as np
from fusecli.fusion.backend.device import torch_threads
from fusecli.fusion.base import Computing
from fusecli.fusion.build import build_fusion
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights

own = dict(num_heads=8, layers=2, ffn_dim=1024) if sys.argv[1] == "transformer" else (
    dict(num_heads=8) if sys.argv[1] == "attention" else dict(rank=256))
config = FusionConfig(
    method=sys.argv[1], embed_dim=256, image_dim=256, text_dim=256, **own)
rng = np.random.default_rng(0)
image, text = (rng.normal(size=(1, n, 256)).astype(np.float32) for n in (48, 11))
with torch_threads(2):
    fusion = build_fusion(
        config, partial(initial_weights, config, 0), config.sizes(1, 11, 48),
        Computing(engine="torch", device="cpu"))
    assert fusion.threads == 2
    here = [fusion.fuse(image, text).tobytes() for _ in range(2)]
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            here += [pool.submit(fusion.fuse, image, text).result().tobytes() for _ in range(2)]
print(len(set(here)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["transformer", "attention", "bilinear"])
def test_first_product_of_a_thread_is_as_all_others(method: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, method],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"
