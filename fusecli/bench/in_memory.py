"""This tool against the plain PyTorch module, on this machine, side by side.

Both run from memory on the same inputs and weights, in turns, and the medians are compared.
The plain side is as good a script as a competent user writes: the whole batch at once,
`inference_mode`, all threads, no attention weights asked for. Weights are loaded beforehand
on both sides, and fusecli's are folded for the order it picks; what that took is in the
result, since a short job pays it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.arrays import ArrayBackend, NumpyArrays, TorchArrays
from fusecli.fusion.backend.device import numpy_threads, resolve_device
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.literals import Dtype, Engine, ScoreOrder, ValueOrder
from fusecli.fusion.methods.attention.fusion import AttentionFusion
from fusecli.fusion.methods.attention.operands import Operands, prepare
from fusecli.fusion.methods.attention.plan import choose_plan, chunk_samples
from fusecli.fusion.methods.attention.products import attend
from fusecli.fusion.settings import Sizes
from fusecli.job.pipeline import stream

IMAGE_TOKENS = (1, 49, 197, 577)
TEXT_TOKENS = (8, 16, 32, 77)

# The threads of numpy's library turn idly for more than 50 ms after a product and take the
# cores from whoever comes next: the plain module ran at half its rate without this pause.
REST_S = 0.25


@dataclass(frozen=True)
class Row:
    """One shape, measured.

    Attributes:
        P, T, N: image tokens, text tokens, pairs at once.
        plain_rate, rate: pairs a second, of the plain module and of fusecli.
        ratio: of the two, the median over the turns.
        engine: numpy or torch, where fusecli computed.
        scores, values: the order it chose.
        fewer: how many times fewer multiply-adds that order takes, as counted.
        gflops: of what fusecli really multiplied, 1e9 operations a second.
        peak_share: of the matrix-product peak measured in the same run.
        prepare_s: seconds to fold and place the weights, once a job.
        deviation: largest difference of the two results, as a share of the output's scale.
    """

    P: int
    T: int
    N: int
    plain_rate: float
    rate: float
    ratio: float
    engine: Literal["numpy", "torch"]
    scores: ScoreOrder
    values: ValueOrder
    fewer: float
    gflops: float
    peak_share: float
    prepare_s: float
    deviation: float


def measure_peak(device: str, dtype: Dtype, seconds: float = 1.0) -> float:
    """Matrix-product peak in 1e9 operations a second: the best of square products.

    On the CPU in float32 of numpy's and torch's, which come with different libraries.
    """
    import torch

    size = 2048
    candidates: list[Callable[[], Any]] = []
    if device == "cpu" and dtype == "float32":
        square = np.random.default_rng(0).standard_normal((size, size), np.float32)
        candidates.append(lambda: np.matmul(square, square))
    left = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    right = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    out = torch.empty_like(left)

    candidates.append(lambda: torch.mm(left, right, out=out))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min([best, *(_seconds(run, device) for run in candidates)])
    return 2 * size**3 / best / 1e9


@dataclass(frozen=True)
class RowOptions:
    """What the table is of.

    Attributes:
        device, dtype, engine: what fusecli runs on; "auto" is what `fuse` takes for a long job.
        plain_dtype: type of the plain module, where it is another.
        image_tokens, text_tokens: the P and T of the table.
        dim, heads: D (also Di and Dt) and H.
        pairs: N, pairs in memory at once; the plain module takes them as one batch.
        turns: how often each side runs; the two alternate.
    """

    device: str = "cpu"
    dtype: Dtype = "float32"
    engine: Engine = "auto"
    plain_dtype: Dtype | None = None
    image_tokens: tuple[int, ...] = IMAGE_TOKENS
    text_tokens: tuple[int, ...] = TEXT_TOKENS
    dim: int = 768
    heads: int = 8
    pairs: int = 64
    turns: int = 7


def bench_rows(options: RowOptions, peak: float) -> Iterator[Row]:
    """Measure the table, one row after the other; imports torch.

    Args:
        options: what it is of.
        peak: what `measure_peak` gave.

    Raises:
        DeviceError: the device is not there.
    """
    options = replace(options, device=resolve_device(options.device))
    weights = initial_weights(FusionConfig(options.dim, options.heads), 0)
    rng = np.random.default_rng(0)
    for name in ("attention.in_proj_bias", "attention.out_proj.bias"):
        weights[name] = rng.standard_normal(weights[name].shape, np.float32) * np.float32(0.1)
    for P in options.image_tokens:
        for T in options.text_tokens:
            image = rng.standard_normal((options.pairs, P, options.dim), np.float32)
            text = rng.standard_normal((options.pairs, T, options.dim), np.float32)
            yield _measure(options, peak, weights, image, text)


def _measure(
    options: RowOptions,
    peak: float,
    weights: dict[str, NDArray[np.float32]],
    image: NDArray[np.float32],
    text: NDArray[np.float32],
) -> Row:
    """One row of the table.

    Args:
        options: with a device that is on this machine.
        peak: what `measure_peak` gave.
        weights: of both sides.
        image, text: `[N, P, D]` and `[N, T, D]`.
    """
    device, dtype, dim = options.device, options.dtype, options.dim
    (N, P, _), T = image.shape, text.shape[1]
    config = FusionConfig(dim, options.heads)
    plain = _plain_runner(config, weights, image, text, device, options.plain_dtype or dtype)
    sizes = Sizes(N, T, P, dim, dim, dim, options.heads)
    plan = choose_plan(sizes, prepared=True, dtype=dtype)
    numpy = options.engine == "numpy" or (
        options.engine == "auto" and device == "cpu" and dtype == "float32"
    )
    arrays: ArrayBackend = NumpyArrays() if numpy else TorchArrays(device, dtype)
    began = time.perf_counter()
    operands = prepare(weights, config, plan, arrays)
    prepare_s = time.perf_counter() - began
    if numpy:
        fusion = AttentionFusion(operands, arrays, device, numpy_threads())
        ours = _our_runner(fusion, sizes, image, text)
    else:
        ours = _our_device_runner(operands, arrays, image, text)
    deviation = _deviation(plain, ours)
    plain_times, times = _take_turns(plain, ours, options, REST_S if numpy else 0.0)
    seconds = statistics.median(times)
    gflops = 2 * plan.multiply_adds / seconds / 1e9
    return Row(
        P=P,
        T=T,
        N=N,
        plain_rate=N / statistics.median(plain_times),
        rate=N / seconds,
        ratio=statistics.median(a / b for a, b in zip(plain_times, times, strict=True)),
        engine="numpy" if numpy else "torch",
        scores=plan.scores,
        values=plan.values,
        fewer=plan.plain / plan.multiply_adds,
        gflops=gflops,
        peak_share=gflops / peak,
        prepare_s=prepare_s,
        deviation=deviation,
    )


def _take_turns(
    plain: Callable[[], Any], ours: Callable[[], Any], options: RowOptions, rest: float
) -> tuple[list[float], list[float]]:
    """Seconds of the plain module and of fusecli, turn by turn, without the first turn, which
    touches the memory."""
    plain_times, times = [], []
    for turn in range(options.turns + 1):
        a = _second_run(plain, options.device, rest)
        b = _second_run(ours, options.device, rest)
        if turn:
            plain_times.append(a)
            times.append(b)
    return plain_times, times


def _plain_runner(
    config: FusionConfig,
    weights: dict[str, NDArray[np.float32]],
    image: NDArray[np.float32],
    text: NDArray[np.float32],
    device: str,
    dtype: Dtype,
) -> Callable[[], Any]:
    import torch

    from fusecli.fusion.torch_modules import ImageTextFusion

    kind = getattr(torch, dtype)
    module = ImageTextFusion.from_config(config)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    module = module.to(device, kind).eval()
    y, x = torch.from_numpy(image).to(device, kind), torch.from_numpy(text).to(device, kind)

    def run() -> Any:
        with torch.inference_mode():
            return module(y, x)

    return run


def _our_runner(
    fusion: AttentionFusion, sizes: Sizes, image: NDArray[np.float32], text: NDArray[np.float32]
) -> Callable[[], Any]:
    """Fuse what is in memory, in the chunks in which `fuse` would stream it."""
    N, T, D = len(image), text.shape[1], fusion.config.embed_dim
    step = chunk_samples(sizes, fusion.plan, None, fusion.workers)
    cuts = [(start, min(start + step, N)) for start in range(0, N, step)]
    out = np.empty((N, T, D), np.float32)
    places = iter(cuts)

    def write(fused: NDArray[np.float32]) -> None:
        start, stop = next(places)
        out[start:stop] = fused

    def run() -> Any:
        nonlocal places
        places = iter(cuts)
        with fusion.in_parallel(fusion.workers if len(cuts) > 1 else 1):
            stream(
                cuts,
                lambda start, stop: (image[start:stop], text[start:stop]),
                lambda start, stop, sides: fusion.fuse(*sides),
                write,
                fusion.workers,
            )
        return out

    return run


def _our_device_runner(
    operands: Operands, arrays: ArrayBackend, image: NDArray[np.float32], text: NDArray[np.float32]
) -> Callable[[], Any]:
    """Fuse what lies in the device's memory, as the plain module's inputs do."""
    y, x = arrays.load(image), arrays.load(text)
    return lambda: attend(operands, y, x, arrays)


def _deviation(plain: Callable[[], Any], ours: Callable[[], Any]) -> float:
    a, b = plain(), ours()
    a = a.float().cpu().numpy()
    b = b if isinstance(b, np.ndarray) else b.float().cpu().numpy()
    return float(np.abs(a - b).max() / np.abs(a).max())


def _second_run(run: Callable[[], Any], device: str, rest: float) -> float:
    """Seconds of a run that follows another of its own side, as in a long job."""
    time.sleep(rest)
    _seconds(run, device)
    return _seconds(run, device)


def _seconds(run: Callable[[], Any], device: str) -> float:
    began = time.perf_counter()
    run()
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    elif device == "mps":
        import torch

        torch.mps.synchronize()
    return time.perf_counter() - began
