"""Pairs to train on, and the command line."""

import contextlib
import os
import subprocess
import sys

import numpy as np

from tests.faults.running import run

N = 60


def write_pairs(folder, n=N, seed=0, label=None):
    """A product task: the sign of a text channel times that of an image channel."""
    generator = np.random.default_rng(seed)
    (folder / "img").mkdir(parents=True)
    (folder / "txt").mkdir()
    lines = ["id,label"]
    for number in range(n):
        image = generator.normal(size=(3, 6)).astype(np.float32)
        text = generator.normal(size=(2, 5)).astype(np.float32)
        a, b = generator.choice([-1, 1], 2)
        image[:, 0], text[:, 0] = 2 * a, 2 * b
        np.save(folder / "img" / f"p{number}.npy", image)
        np.save(folder / "txt" / f"p{number}.npy", text)
        value = ("yes" if a * b > 0 else "no") if label is None else label(number, a, b)
        lines.append(f"p{number},{value}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def fusecli(*arguments, cwd, code=0):
    """The command line in this process: to start one of its own takes longer than the training."""
    with contextlib.chdir(cwd):
        done = run(*map(str, arguments))
    assert done.code == code, done.err
    return subprocess.CompletedProcess(arguments, done.code, done.out, done.err)


def fusecli_process(*arguments, cwd):
    """The command line in a process of its own, with one thread of torch."""
    done = subprocess.run(
        [sys.executable, "-m", "fusecli", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
