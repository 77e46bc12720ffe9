"""Chunks go through reading, computing and writing in order, and errors come out."""

import threading
import time

import pytest

from fusecli.job.pipeline import stream

CUTS = [(0, 3), (3, 6), (6, 7)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("cuts", [CUTS, CUTS[:1], [(i, i + 1) for i in range(100)]])
def test_every_chunk_is_read_computed_and_written_in_order(cuts, workers):
    read, written = [], []

    def reading(start, stop):
        read.append((start, stop))
        return list(range(start, stop))

    def compute(start, stop, got):
        time.sleep(0.003 if start % 3 == 0 else 0)  # some overtake others
        return start, stop, got

    stream(cuts, reading, compute, written.append, workers)
    assert read == cuts
    assert written == [(a, b, list(range(a, b))) for a, b in cuts]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_few_chunks_wait_for_a_slow_writer(workers):
    waiting = []

    def read(start, stop):
        waiting.append(start)
        return start

    def write(made):
        time.sleep(0.002)
        # One a worker and one more are under way or made, besides the one that is written.
        assert len(waiting) - made <= workers + 2

    stream([(i, i + 1) for i in range(40)], read, lambda a, b, got: got, write, workers)
    assert waiting == list(range(40))


def test_as_many_chunks_are_computed_at_once_as_there_are_workers():
    together = threading.Barrier(3, timeout=20)
    stream(
        [(i, i + 1) for i in range(9)],
        lambda a, b: a,
        lambda a, b, got: together.wait(),
        lambda made: None,
        3,
    )


def test_only_one_reads_at_a_time():
    reading = threading.Lock()

    def read(start, stop):
        assert reading.acquire(blocking=False)
        time.sleep(0.001)
        reading.release()

    stream([(i, i + 1) for i in range(30)], read, lambda a, b, got: None, lambda made: None, 4)


@pytest.mark.parametrize("step", ["read", "compute", "write"])
@pytest.mark.parametrize("cuts", [CUTS, CUTS[:1]])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_any_step_is_raised(step, cuts, workers):
    def fail(*args):
        raise OSError(step)

    steps = {
        "read": lambda a, b: a,
        "compute": lambda a, b, got: got,
        "write": lambda made: None,
    }
    with pytest.raises(OSError, match=step):
        stream(cuts, **{**steps, step: fail}, workers=workers)


def test_the_error_of_the_first_chunk_is_the_one_that_is_raised():
    def compute(start, stop, got):
        time.sleep(0.02 if start == 0 else 0)
        raise OSError(f"chunk {start}")

    written = []
    with pytest.raises(OSError, match="chunk 0"):
        stream([(i, i + 1) for i in range(9)], lambda a, b: a, compute, written.append, 3)
    assert written == []
