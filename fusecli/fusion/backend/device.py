"""Choose the device and the number of threads. Torch is imported only for other devices."""

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
    """The devices of this machine, the fastest first. Imports torch."""
    import torch

    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(name: str) -> str:
    """The device that a name stands for. Imports torch.

    Args:
        name: auto, cpu, cuda, cuda:i or mps.

    Raises:
        DeviceError: this machine has no such device.
    """
    there = devices()
    if name == "auto":
        return there[0]
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in there:
        raise DeviceError(f"--device {name}: is not there; this machine has {', '.join(there)}")
    return wanted


def accelerator_likely() -> bool:
    """Whether this machine seems to have an accelerator. Does not import torch."""
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD
    return sys.platform == "darwin" or any(os.path.exists(path) for path in drivers)


def numpy_threads() -> int:
    """Threads for numpy's matrix products: the limit in the environment, or all physical cores."""
    for limit in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(limit, "")
        if value.isdigit() and int(value) > 0:
            return min(int(value), cores())
    return physical_cores()


def one_thread_a_product() -> AbstractContextManager[object]:
    """Context manager: numpy's matrix products use one thread, the one that calls them."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def set_torch_threads(count: int) -> None:
    """Set how many threads torch uses for the operations that the calling thread starts.

    Call it in every thread. OpenMP and MKL keep one number for each calling thread. Torch passes
    its own number to a new thread only with the first operation that torch itself divides; a
    matrix product before that would use the number of the process, and give other last bits.
    """
    import torch

    torch.set_num_threads(count)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Context manager: torch uses this many threads of the CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def physical_cores() -> int:
    """Cores that this process may use; on Linux the threads of one core count once.

    Two threads on one core share its arithmetic units, so matrix products do not gain from both.
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
    """Cores that this process may use, as the system counts them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
