"""What one pair takes at least, and what the machine has left."""

from __future__ import annotations

import contextlib
import os

from fusecli.batch.run_spec import FusionSpec
from fusecli.fusion.results import query_sides

_GROUPS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def bytes_of_pair(spec: FusionSpec, T: int, P: int) -> int:
    """Bytes that fusing one pair takes at least: features, scores and result in float32.

    Args:
        spec: what is computed.
        T, P: text and image tokens.
    """
    config = spec.config
    numbers = T * config.text_dim + P * config.image_dim
    for query in query_sides(spec.direction):
        queries, context = (T, P) if query == "text" else (P, T)
        numbers += queries * config.embed_dim
        if config.has_heads and context > 1:
            numbers += config.num_heads * queries * context
    return 4 * numbers


def bytes_left() -> int | None:
    """Bytes that this process can still take; None where the system does not tell.

    The least of what the machine, the process's limit and its control group leave.
    """
    left = [_machine(), _limit(), _control_group()]
    known = [size for size in left if size is not None]
    return min(known) if known else None


def _machine() -> int | None:
    """Source: proc(5), MemAvailable and SwapFree."""
    found = {}
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name in (b"MemAvailable", b"SwapFree"):
                found[name] = int(rest.split()[0]) << 10
    if b"MemAvailable" not in found:
        return None
    return sum(found.values())


def _limit() -> int | None:
    """What RLIMIT_AS leaves of the address space."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[0])
        return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
    except (ImportError, OSError, ValueError):
        return None


def _control_group() -> int | None:
    """Source: cgroups(7), versions 2 and 1; a container sees its own group as the root."""
    for folder, (limit, used) in zip(
        ("/sys/fs/cgroup", "/sys/fs/cgroup/memory"), _GROUPS, strict=True
    ):
        with contextlib.suppress(OSError, ValueError):
            with open(os.path.join(folder, limit)) as file:
                most = int(file.read())  # "max" is no number
            with open(os.path.join(folder, used)) as file:
                return max(0, most - int(file.read()))
    return None
