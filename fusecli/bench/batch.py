"""`fusecli batch` from files to files, against the loop that people write, and its memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np

from fusecli.bench.processes import PLAIN_SCRIPT, watched
from fusecli.features.formats.npy import npy_header
from fusecli.features.formats.safetensors import file_start
from fusecli.pairs.open import PairOptions, open_pairs

_BLOCK = 64  # different pairs; what they hold has no part in the time they take
# The plain module once loaded, a pair after the other, as in a script of one's own.
_LOOP = """

import os
images, texts, out, first = *sys.argv[1:4], int(sys.argv[4])
names = sorted(os.listdir(images))[:first]
torch.manual_seed(0)
fusion = ImageTextFusion(768, 8).eval()
began = time.perf_counter()
with torch.inference_mode():
    for name in names:
        image = torch.from_numpy(np.load(os.path.join(images, name)))
        text = torch.from_numpy(np.load(os.path.join(texts, name)))
        np.save(os.path.join(out, name), fusion(image[None], text[None])[0].numpy())
print(len(names) / (time.perf_counter() - began))
"""
LOOP_SCRIPT = "import time\n" + PLAIN_SCRIPT.partition("\ntorch.manual_seed")[0] + _LOOP


@dataclass(frozen=True)
class BatchResult:
    """One batch, from files to files.

    Attributes:
        pairs: how many.
        loop_rate: pairs a second of the resident torch loop, its start not counted.
        rate, packed_rate: pairs a second of `fusecli batch`, its start counted, into files and
            with --pack.
        ratio, packed_ratio: to the loop's.
        resident_mb: the most a process held; None where there is no /proc.
    """

    pairs: int
    loop_rate: float
    rate: float
    packed_rate: float
    ratio: float
    packed_ratio: float
    resident_mb: float | None


@dataclass(frozen=True)
class MemoryResult:
    """Memory of a run over tensors keyed by id.

    Attributes:
        pairs: how many.
        resident_mb: the most the process held; None where there is no /proc.
        rate: pairs a second.
        listing_s: seconds that finding all pairs takes, before the first is fused.
    """

    pairs: int
    resident_mb: float | None
    rate: float
    listing_s: float


@dataclass(frozen=True)
class RayResult:
    """One batch as a plain run and on a Ray of this machine, from files to files.

    Attributes:
        pairs: how many.
        rate, ray_rate: pairs a second, the start counted.
        start_s: seconds more that a run of a few pairs takes on Ray.
        more: what a pair takes more on Ray than in the plain run, as a share, the start left out.
    """

    pairs: int
    rate: float
    ray_rate: float
    start_s: float
    more: float


def bench_batch(pairs: int, turns: int = 3) -> BatchResult:
    """Pairs `[1, 768]` with `[8..32, 768]` in files of their own; medians over the turns.

    Args:
        pairs: how many; 0.13 MB each in the temporary folder.
        turns: how often each side runs; the sides alternate.
    """
    with tempfile.TemporaryDirectory() as folder:
        images, texts = (os.path.join(folder, name) for name in ("images", "texts"))
        _write_files(images, texts, pairs)
        script = os.path.join(folder, "loop.py")
        with open(script, "w") as file:
            file.write(LOOP_SCRIPT)
        first = min(pairs, 2000)
        loop: list[float] = []
        plain: list[float] = []
        packed: list[float] = []
        resident = None
        for turn in range(turns):
            out = os.path.join(folder, f"loop{turn}")
            os.mkdir(out)
            command = [sys.executable, script, images, texts, out, str(first)]
            loop.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
            for rates, options in ((plain, []), (packed, ["--pack"])):
                out = os.path.join(folder, f"out{turn}{len(options)}")
                seconds, peak = _timed([images, texts, "-o", out, "-q", *options])
                rates.append(pairs / seconds)
                resident = max(resident or 0.0, peak) if peak else resident
        rates = [sorted(each)[len(each) // 2] for each in (loop, plain, packed)]
    return BatchResult(
        pairs, rates[0], rates[1], rates[2], rates[1] / rates[0], rates[2] / rates[0], resident
    )


def bench_memory(pairs: int, shard: int = 10_000) -> MemoryResult:
    """Small pairs `[1, 32]` with `[2, 32]`, keyed by id in safetensors files, packed.

    Args:
        pairs: how many; 0.8 kB each in the temporary folder.
        shard: pairs in one file.
    """
    with tempfile.TemporaryDirectory() as folder:
        images, texts = (os.path.join(folder, name) for name in ("images", "texts"))
        for path, tokens in ((images, 1), (texts, 2)):
            os.mkdir(path)
            for start in range(0, pairs, shard):
                _write_keyed(path, start, min(pairs, start + shard), tokens)
        began = time.perf_counter()
        open_pairs(PairOptions(images, texts, keyed=True, ending=""))
        listing_s = time.perf_counter() - began
        out = os.path.join(folder, "out")
        seconds, peak = _timed([images, texts, "--keyed", "--pack", "-o", out, "-q"])
    return MemoryResult(pairs, peak, pairs / seconds, listing_s)


def bench_ray(pairs: int, turns: int = 3) -> RayResult:
    """The pairs of `bench_batch`, and a hundredth of them; medians over the turns.

    Args:
        pairs: how many; 0.13 MB each in the temporary folder, and the results.
        turns: how often each side runs; the sides alternate.
    """
    # By how many pairs, and on Ray or not.
    seconds: dict[tuple[int, bool], list[float]] = {}
    few = max(1, pairs // 100)
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, pairs):
            images, texts = (os.path.join(folder, f"{name}{count}") for name in ("i", "t"))
            _write_files(images, texts, count)
            for _ in range(turns):
                for ray in (False, True):
                    with tempfile.TemporaryDirectory(dir=folder) as out:
                        arguments = [images, texts, "-o", os.path.join(out, "o"), "-q"]
                        took, _ = _timed([*arguments, "--ray"] if ray else arguments)
                    seconds.setdefault((count, ray), []).append(took)
    median = {each: sorted(took)[turns // 2] for each, took in seconds.items()}
    plain, ray_s = (median[pairs, ray] - median[few, ray] for ray in (False, True))
    return RayResult(
        pairs,
        pairs / median[pairs, False],
        pairs / median[pairs, True],
        median[few, True] - median[few, False],
        ray_s / plain - 1,
    )


def _write_files(images: str, texts: str, pairs: int) -> None:
    rng = np.random.default_rng(0)
    block = rng.standard_normal((_BLOCK, 33, 768), np.float32)
    for folder in (images, texts):
        os.mkdir(folder)
    for index in range(pairs):
        T, numbers = 8 + index * 7 % 25, block[index % _BLOCK]
        name = f"{index:08d}.npy"
        for folder, rows in ((images, numbers[:1]), (texts, numbers[1 : 1 + T])):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(npy_header(rows.shape, "float32"))
                file.write(rows.data)


def _write_keyed(folder: str, start: int, stop: int, tokens: int) -> None:
    rows = np.random.default_rng(start).standard_normal((stop - start, tokens, 32), np.float32)
    shapes = {f"{start + index:09d}": (tokens, 32) for index in range(stop - start)}
    with open(os.path.join(folder, f"{start:09d}.safetensors"), "wb") as file:
        file.write(file_start(shapes, "float32", {}))
        file.write(rows.data)


def _timed(arguments: list[str]) -> tuple[float, float | None]:
    """Seconds and high-water mark in MB of one `fusecli batch`."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return watched([sys.executable, "-m", "fusecli", "batch", *arguments], env)
