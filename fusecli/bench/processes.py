"""Whole processes of `fusecli fuse`, from start to file: one small job, and a long stack."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np

from fusecli.bench.in_memory import RowOptions, bench_rows
from fusecli.features.formats.base import OutputContents
from fusecli.features.writer import FUSED_KEY, FeatureWriter

# What people write today, in full.
PLAIN_SCRIPT = """\
import sys
import numpy as np
import torch
from torch import nn


class ImageTextFusion(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.text_proj = nn.Linear(dim, dim)
        self.image_proj = nn.Linear(dim, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, image, text):
        text, image = self.text_proj(text), self.image_proj(image)
        return self.attention(text, image, image, need_weights=False)[0]


torch.manual_seed(0)
fusion = ImageTextFusion(768, 8).eval()
with torch.inference_mode():
    image, text = (torch.from_numpy(np.load(name)) for name in sys.argv[1:3])
    np.save(sys.argv[3], fusion(image[None], text[None])[0].numpy())
"""


@dataclass(frozen=True)
class ProcessResult:
    """One small job, in turns with the plain script.

    Attributes:
        fusecli_s, script_s: median seconds of a whole process.
        ratio: median of the quotients, script by fusecli.
    """

    fusecli_s: float
    script_s: float
    ratio: float


@dataclass(frozen=True)
class StackResult:
    """One stack, from file to file.

    Attributes:
        seconds: of the whole process.
        rate, memory_rate: pairs a second, of the process and from memory.
        file_gb: both inputs, in 1e9 bytes.
        resident_mb: the most the process held; None where there is no /proc.
    """

    seconds: float
    rate: float
    memory_rate: float
    file_gb: float
    resident_mb: float | None


def bench_process(turns: int = 7) -> ProcessResult:
    """Whole-process seconds of one small `fusecli fuse` and of the plain script, in turns.

    Args:
        turns: how often each runs; the first run of each does not count.
    """
    # Byte code is written once and used after, as it is for an installed program.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("image.npy", "text.npy")]
        for name, rows in zip(names, (1, 8), strict=True):
            np.save(name, rng.standard_normal((rows, 768), np.float32))
        script = os.path.join(folder, "script.py")
        with open(script, "w") as file:
            file.write(PLAIN_SCRIPT)
        ours = [sys.executable, "-m", "fusecli", "fuse", *names, "-q", "-f", "-o"]
        ours.append(os.path.join(folder, "a.npy"))
        plain = [sys.executable, script, *names, os.path.join(folder, "b.npy")]

        def run(command: list[str]) -> float:
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
            return time.perf_counter() - began

        pairs = [(run(ours), run(plain)) for _ in range(turns + 1)][1:]
    return ProcessResult(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def bench_stack(pairs: int, P: int = 197, T: int = 16, dim: int = 768) -> StackResult:
    """One whole `fusecli fuse` of a stack from file to file, against the rate from memory.

    Args:
        pairs: samples of the stack; the files are written to the temporary folder first.
        P, T, dim: their shape.
    """
    (row,) = bench_rows(RowOptions(image_tokens=(P,), text_tokens=(T,), dim=dim, turns=5), 1.0)
    block = np.random.default_rng(0).standard_normal((64, P + T, dim), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("image.npy", "text.npy")]
        for name, part in zip(names, (block[:, :P], block[:, P:]), strict=True):
            contents = OutputContents({FUSED_KEY: (pairs, *part.shape[1:])}, "float32", {})
            with FeatureWriter(name, contents) as writer:
                writer.begin()
                for start in range(0, pairs, len(part)):
                    writer.append(part[: pairs - start])
                writer.finish()
                writer.publish()
        size = sum(os.path.getsize(name) for name in names)
        out = os.path.join(folder, "out.npy")
        command = [sys.executable, "-m", "fusecli", "fuse", *names, "-q", "-o", out]
        seconds, resident = watched(command)
    return StackResult(seconds, pairs / seconds, row.rate, size / 1e9, resident)


def watched(command: list[str], env: dict[str, str] | None = None) -> tuple[float, float | None]:
    """Seconds of a whole process, and the most memory it held in MiB; see `high_water_mb`.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    peak = None
    while process.poll() is None:
        # The mark is gone with the process; getrusage counts the parent's memory too.
        peak = high_water_mb(process.pid) or peak
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, peak


def high_water_mb(pid: int) -> float | None:
    """The most memory a running process has held, in MiB; None where there is no /proc."""
    try:
        with open(f"/proc/{pid}/status") as status:
            marks = [line.split()[1] for line in status if line.startswith("VmHWM:")]
    except OSError:
        return None
    return int(marks[0]) / 1024 if marks else None
