"""Pairs to run batches on, and what became of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

DT, DI = 32, 24  # widths of the texts and images made here

# The command line with small steps: a stop at any moment finds something half done.
PROGRAM = """
import functools
import os
import sys
import time
import fusecli.batch
from fusecli.batch.tuning import Tuning
from fusecli.cli.main import main

def in_pieces(descriptor, buffers):
    data = b"".join(buffers)
    for start in range(0, len(data), 200):
        time.sleep(pause)
        piece = data[start : start + 200]
        while piece:
            piece = piece[os.write(descriptor, piece) :]
    return len(data)

pause = 0
tuning = Tuning(window_pairs=8, commit_seconds=0, write_all=in_pieces)
{more}
fusecli.batch.run_batch = functools.partial(fusecli.batch.run_batch, tuning=tuning)
main(sys.argv[1:])
"""


def make_pairs(folder: Path, count: int, seed: int = 0, P: tuple[int, ...] = (1, 5, 9)) -> None:
    """`images/` and `texts/` in a folder, with ids in two levels; T from 1 to 12."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        name = f"{index % 3}/{index:04d}.npy"
        image = rng.standard_normal((P[index % len(P)], DI)).astype(np.float32)
        text = rng.standard_normal((1 + index * 7 % 12, DT)).astype(np.float32)
        for side, rows in (("images", image), ("texts", text)):
            path = folder / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rows)


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file under a final name, by relative path: results, packs and their index."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and ".fusecli" not in path.parts
        and not path.name.startswith(("journal", "run.json", ".fusecli-"))
    }


def journal(folder: Path, name: str = "journal.jsonl") -> list[dict[str, Any]]:
    """The journal's lines."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def left_behind(folder: Path) -> list[str]:
    """Temporary files of a run."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if "staging" in path.as_posix() or path.name.startswith(".fusecli-")
    ]


def start(
    arguments: Iterable[str | Path], more: str = "", **options: Any
) -> subprocess.Popen[bytes]:
    """`fusecli batch` in a process of its own, with small steps."""
    command = [sys.executable, "-c", PROGRAM.format(more=more), "batch", *map(str, arguments)]
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process: subprocess.Popen[bytes] = subprocess.Popen(command, **settings)
    return process


def write_pairs(count: int, first: int = 0, P: int = 49, T: int = 12, D: int = 64) -> None:
    """`images/` and `texts/` in the working folder, in one level; lengths differ by up to four."""
    rng = np.random.default_rng(0)
    for side, tokens in (("images", P), ("texts", T)):
        Path(side).mkdir(exist_ok=True)
        pool = rng.normal(size=(tokens + 40, D)).astype(np.float32)
        for n in range(first, count):
            np.save(f"{side}/{n:05}.npy", pool[n % 40 : n % 40 + tokens - n % 5])
