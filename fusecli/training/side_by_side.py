"""Models that are trained side by side, each on one torch thread; the device that computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from fusecli.fusion.backend.device import cores, resolve_device, torch_threads

Result = TypeVar("Result")


def run_side_by_side(
    calls: Sequence[Callable[[], Result]], workers: int, stop: threading.Event
) -> list[Result]:
    """Results of calls that run in threads; an error or Ctrl-C stops all of them."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in done if f.exception() is not None]
            if failed:
                failed[0].result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is a GPU where there is one."""
    return torch.device(resolve_device(name))


def worker_count(device: torch.device) -> int:
    """Models side by side: one a core on the CPU, up to four; four on a GPU."""
    if device.type != "cpu":
        return 4
    return min(4, cores())


def one_thread_a_model() -> AbstractContextManager[None]:
    """One torch thread for each model: two models side by side beat one model on two threads."""
    return torch_threads(1)
