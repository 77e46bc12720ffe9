"""Reaching a Ray cluster, or starting one of this machine's own, and leaving it as it was."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from fusecli.batch.options import BatchOptions, RayOptions
from fusecli.errors import RayError
from fusecli.features.formats.base import one_line
from fusecli.fusion.backend.device import cores

# Ray's own rules decide which code and which packages a cluster gets.
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_CONNECTING = 10.0  # seconds to reach an address

# If Ray's own processes die, Ray may end this process without running any more Python code.
# So a small process watches this one, prints a last message and removes Ray's files.
_WITNESS = """
import os, shutil, signal, sys, time

def is_ours(name, logs, mark):
    if os.stat(f"/proc/{name}").st_uid != os.getuid():
        return False
    with open(f"/proc/{name}/environ", "rb") as file:
        if mark.encode() in file.read().split(b"\\0"):
            return True
    # A process of Ray that gives itself a title writes it over its environment. It writes a log;
    # who only reads one, as tail or an editor does, is somebody else.
    for number in os.listdir(f"/proc/{name}/fd"):
        try:
            if not os.readlink(f"/proc/{name}/fd/{number}").startswith(logs + os.sep):
                continue
            with open(f"/proc/{name}/fdinfo/{number}") as file:
                flags = next(line.split()[1] for line in file if line.startswith("flags:"))
            if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                return True
        except OSError:
            pass
    return False

def kill_left(logs, mark):
    left, logs = 0, os.path.realpath(logs)  # as the system names open files
    for name in os.listdir("/proc") if mark and os.path.isdir("/proc") else []:
        try:
            if name.isdigit() and int(name) != os.getpid() and is_ours(name, logs, mark):
                left += 1
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            pass
    return left

if not sys.stdin.read():
    print("error: --ray: this run was ended from outside, by Ray whose own processes have died "
          "or by a kill; the same command goes on", file=sys.stderr, flush=True)
    clean = 0
    for _ in range(300):  # a process may be on its way to start another one
        left = kill_left(sys.argv[1], sys.argv[2])
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        clean = 0 if left or os.path.exists(sys.argv[1]) else clean + 1
        if clean == 3:
            break
        time.sleep(0.1)
"""
_MARK = "FUSECLI_RAY_RUN"  # in the environment of Ray's processes that were started here


def check_ray(on: RayOptions) -> None:
    """Check that Ray is available before anything is written.

    Raises:
        RayError: it is not installed, or nothing answers at its address.
    """
    _imported(on)
    if on.address not in (None, "auto"):
        _check_reachable(on.address)


def worker_count(o: BatchOptions, resources: dict[str, float]) -> int:
    """The number of workers of a run: as given, or as many as fit into the cluster.

    Raises:
        RayError: it has room for none.
    """
    assert o.ray is not None
    if o.workers is not None:
        return o.workers
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    each = o.ray.gpus_per_worker
    count = int(min(cpus, gpus / each if each else cpus))
    if count < 1:
        raise RayError(
            f"the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs, and a worker takes 1 CPU"
            f"{f' and {each:g} GPUs' if each else ''}"
        )
    return count


@contextlib.contextmanager
def connected(on: RayOptions, o: BatchOptions) -> Iterator[Any]:
    """Ray, connected to a cluster or started here, and left as it was found."""
    ray = _imported(on)
    if ray.is_initialized():
        yield ray
        return
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        logs = mark = ""
        if on.address is None:
            mark = secrets.token_hex(16)
            stack.enter_context(_marked(mark))
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="fray-"))
            settings |= {
                "address": "local",
                "num_cpus": o.workers or cores(),
                "include_dashboard": False,
                "object_store_memory": max(256 << 20, 2 * o.max_memory),
                "_temp_dir": logs,
            }
        else:
            settings["address"] = on.address
        stack.enter_context(_witnessed(logs, mark and f"{_MARK}={mark}"))
        stack.callback(ray.shutdown)
        _initialize(ray, settings)
        yield ray


def refuse_ended(ray: Any) -> None:
    """Raises:
    RayError: no machine of the cluster is left.
    """
    if not any(node["Alive"] for node in ray.nodes()):
        raise RayError(
            "--ray: Ray has ended, none of its machines is left; what is done stays, and the same "
            "command goes on"
        )


@contextlib.contextmanager
def _marked(mark: str) -> Iterator[None]:
    """Context manager that marks the processes that are started in it."""
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        del os.environ[_MARK]


@contextlib.contextmanager
def _witnessed(logs: str, mark: str) -> Iterator[None]:
    """Context manager: if this process ends without Python's knowledge, another prints a message
    and cleans up.

    Args:
        logs: the folder of Ray's logs, "" where Ray was not started here.
        mark: `NAME=value` in the environment of the processes that were started here.
    """
    command = [sys.executable, "-IS", "-c", _WITNESS, logs, mark]
    # In a session of its own Ctrl-C does not end it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as witness:
        try:
            yield
        finally:
            assert witness.stdin is not None
            with contextlib.suppress(OSError):
                witness.stdin.write(b"over")
                witness.stdin.flush()


def _initialize(ray: Any, settings: dict[str, Any]) -> None:
    try:
        ray.init(**settings)
    except Exception as error:  # which is the kind that Ray raises where a start takes too long
        token = (
            "; if the cluster asks for a token, give it to Ray (RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH)"
        )
        raise RayError(
            f"--ray: Ray cannot be started or reached: {one_line(error)}"
            f"{token if settings['address'] not in ('local', 'auto') else ''}"
        ) from None


def _imported(on: RayOptions) -> Any:
    # Turn off Ray's usage reports: users' data stays on this machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if on.address is None:
        # Decided when ray is imported: listen on this machine's own interface only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # A token for this cluster alone: Ray would write one into the home folder.
        if not any(name in os.environ for name in _AUTHENTICATION):
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise RayError("--ray needs Ray: pip install '.[ray]' in a clone of fusecli") from None
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECTING).close()
    except (OSError, ValueError) as error:
        raise RayError(f"--ray {address}: no Ray cluster answers there: {error}") from None
