"""Read, compute and write the chunks of a stack at the same time, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from threading import Lock
from typing import TypeVar

Read = TypeVar("Read")
Made = TypeVar("Made")


def stream(
    cuts: list[tuple[int, int]],
    read: Callable[[int, int], Read],
    compute: Callable[[int, int, Read], Made],
    write: Callable[[Made], None],
    workers: int = 1,
) -> None:
    """Read, compute and write every chunk.

    Each worker reads a chunk and computes with it while it is still in its core's cache. The
    calling thread writes the results, in the order of the cuts. Only one worker reads at a
    time, in order, so that a file or an archive is read from front to end. At most one result
    a worker, and one more, waits to be written.

    Args:
        cuts: start and stop of every chunk.
        read: returns a chunk; it must not change until the same thread reads again.
        compute: returns the result of a chunk, in memory of its own.
        write: writes a result.
        workers: chunks that are read or computed at the same time.

    Raises:
        Exception: the error of the first chunk that has one; later chunks are not written.
    """
    if len(cuts) == 1:  # a thread would cost more than it saves
        write(compute(*cuts[0], read(*cuts[0])))
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    turn, todo = Lock(), count()

    def work() -> tuple[int, Made | BaseException]:
        with turn:
            index = next(todo)
            try:
                chunk = read(*cuts[index])
            except BaseException as error:
                return index, error
        try:
            return index, compute(*cuts[index], chunk)
        except BaseException as error:
            return index, error

    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[tuple[int, Made | BaseException]]] = deque()
        made: dict[int, Made | BaseException] = {}
        left = len(cuts)
        for index in range(len(cuts)):
            while index not in made:
                while left and len(under_way) + len(made) <= workers:
                    under_way.append(pool.submit(work))
                    left -= 1
                # Two workers that start together may read in the opposite order.
                key, result = under_way.popleft().result()
                made[key] = result
            result = made.pop(index)
            if isinstance(result, BaseException):
                raise result
            if left:
                under_way.append(pool.submit(work))
                left -= 1
            write(result)
