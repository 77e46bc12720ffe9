"""Damaged records, and what a run on one of them must keep to.

`FUSECLI_FUZZ` sets the number of mutations of each record; `make fuzz` takes 20,000.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.running import run

TURNS = int(os.environ.get("FUSECLI_FUZZ", "300"))
MOST_MEMORY = 200 << 20
MOST_SECONDS = 1.0  # of computing, which a busy machine does not change
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64 - 1, 10**400, 1.5, 1e308, "", "\0", "../../x", "/etc",
    "\ud800", "a" * 5000, [], {}, [[]], {"": {}}, [1, 2], [-1, 5], [2**62, 2**62],
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes with a damage: of the JSON in them, if there is some, or of the bytes."""
    if chance.random() < 0.6:
        changed = _mutated_json(data, chance)
        if changed is not None:
            return changed
    kind, at = chance.randrange(7), chance.randrange(len(data) + 1)
    length = chance.choice((1, 1, 2, 8, 100))
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + chance.randbytes(length) + data[at:]
    if kind == 5:
        return (
            data[:at] + chance.choice((b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000)) + data[at:]
        )
    return data[:at] + chance.choice((b"\0", b"\xff\xfe", b"\n", b'"', b"NaN", b"-")) + data[at:]


def _mutated_json(data: bytes, chance: random.Random) -> bytes | None:
    """One value, in one line of JSON or in the header of a safetensors file, replaced."""
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        header = _mutated_value(data[8 : 8 + length], chance)
        if header is None:
            return None
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    whole = _mutated_value(data, chance)
    if whole is not None:
        return whole
    lines = data.splitlines(keepends=True)
    if not lines:
        return None
    index = chance.randrange(len(lines))
    line = _mutated_value(lines[index], chance)
    if line is None:
        return None
    lines[index] = line.rstrip(b"\n") + b"\n"
    return b"".join(lines)


def _mutated_value(text: bytes, chance: random.Random) -> bytes | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in list(items):
            places.append((node, key))
            if isinstance(child, (dict, list)):
                visit(child)
            elif isinstance(child, str) and child[:1] == "{":  # JSON within JSON
                inner = _mutated_value(child.encode(), chance)
                if inner is not None and chance.random() < 0.5:
                    node[key] = inner.decode("utf-8", "surrogatepass")

    if not isinstance(value, (dict, list)):
        return None
    visit(value)
    if places:
        node, key = chance.choice(places)
        if chance.random() < 0.25:
            del node[key]
        elif isinstance(node, dict) and chance.random() < 0.1:
            node[f"{key}x"] = node.pop(key)
        else:
            node[key] = chance.choice(ODD)
    else:
        value = chance.choice(ODD)
    return json.dumps(value).encode("utf-8", "surrogatepass")


class TooLongError(BaseException):
    """Not an Exception, so that nothing on the way takes it for an error of its own."""


@contextmanager
def bounds() -> Iterator[None]:
    """A second of computing, and 200 MB more than before."""

    def stop(number: int, frame: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    on_linux = os.path.exists("/proc/self/clear_refs")
    if on_linux:
        Path("/proc/self/clear_refs").write_text("5")
    start = _peak() if on_linux else 0
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if on_linux:
        assert _peak() - start < MOST_MEMORY


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def parquet_bytes(columns: dict[str, Any]) -> bytes:
    """A .parquet file of these columns."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({n: list(v) for n, v in columns.items()}), sink)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def check(record: Path, data: bytes, args: tuple[str, ...], codes: tuple[int, ...]) -> None:
    """One run on a damaged record."""
    record.write_bytes(data)
    kept = Path("mutation")
    kept.write_bytes(data)
    with bounds():
        done = run(*args)
    assert done.code in codes, done
    assert "Traceback" not in done.err, done
    assert "not enough memory" not in done.err, done
    if done.code in (1, 2):
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1, done
    kept.unlink()
