"""Which device computes. Torch is imported only where a device other than the CPU is in play."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from fusecli.errors import DeviceError, UsageError


def check_device_name(name: str) -> str:
    """Raises:
    UsageError: not one of auto, cpu, cuda, cuda:i, mps.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:0 (1, ...) or mps")
    return name


def devices() -> list[str]:
    """The devices there are, best first; imports torch."""
    import torch

    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(name: str) -> str:
    """The device that a name stands for; imports torch.

    Args:
        name: auto, cpu, cuda, cuda:i or mps.

    Raises:
        DeviceError: it is not on this machine.
    """
    there = devices()
    if name == "auto":
        return there[0]
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in there:
        raise DeviceError(f"--device {name}: is not there; this machine has {', '.join(there)}")
    return wanted


def accelerator_likely() -> bool:
    """Whether this machine looks as if torch would find an accelerator, without asking torch."""
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD
    return sys.platform == "darwin" or any(os.path.exists(path) for path in drivers)


def numpy_threads() -> int:
    """Threads for numpy's products: the limits its library reads, or all physical cores."""
    for limit in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(limit, "")
        if value.isdigit() and int(value) > 0:
            return min(int(value), cores())
    return physical_cores()


def one_thread_a_product() -> AbstractContextManager[object]:
    """Inside, numpy's matrix products run on the thread that calls them."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def set_torch_threads(count: int) -> None:
    """Have torch compute on so many threads what this thread asks of it.

    OpenMP and MKL keep the number for each thread that calls them, and torch hands it on to a new
    thread only with the first operation that it divides itself: a product that comes before runs
    on as many threads as the process began with, and the last bits of its result show it.
    """
    import torch

    torch.set_num_threads(count)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, torch computes on so many threads of the CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def physical_cores() -> int:
    """Cores this process may use, the threads of one core counted once where Linux tells.

    Two threads on one core share its arithmetic units: matrix products gain nothing by it.
    """
    if not hasattr(os, "sched_getaffinity"):
        return cores()
    seen = set()
    for cpu in os.sched_getaffinity(0):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                seen.add(file.read())
        except OSError:
            return cores()
    return len(seen)


def cores() -> int:
    """Cores this process may use, as the system counts them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
