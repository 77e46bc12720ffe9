"""Chunks go through reading, computing and writing in order, and errors come out."""

import threading

import pytest

from fusecli.stream import stream

CUTS = [(0, 3), (3, 6), (6, 7)]


def test_every_chunk_is_read_computed_and_written_in_order():
    written = []
    stream(CUTS, lambda a, b: list(range(a, b)), lambda a, b, got: (a, b, got), written.append)
    assert written == [(a, b, list(range(a, b))) for a, b in CUTS]


def test_no_more_than_one_chunk_is_read_ahead():
    computed = threading.Semaphore(0)
    ahead = []

    def read(start, stop):
        ahead.append(start)
        return start

    def compute(start, stop, got):
        assert len([s for s in ahead if s > start]) <= 1
        computed.release()
        return got

    stream([(i, i + 1) for i in range(20)], read, compute, lambda made: None)
    assert ahead == list(range(20))


@pytest.mark.parametrize("step", ["read", "compute", "write"])
@pytest.mark.parametrize("cuts", [CUTS, CUTS[:1]])
def test_an_error_in_any_step_is_raised(step, cuts):
    def fail(*args):
        raise OSError(step)

    steps = {
        "read": lambda a, b: a,
        "compute": lambda a, b, got: got,
        "write": lambda made: None,
    }
    with pytest.raises(OSError, match=step):
        stream(cuts, **{**steps, step: fail})
