"""Read, compute and write chunks of a stack at the same time, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Read = TypeVar("Read")
Made = TypeVar("Made")


def stream(
    cuts: list[tuple[int, int]],
    read: Callable[[int, int], Read],
    compute: Callable[[int, int, Read], Made],
    write: Callable[[Made], None],
) -> None:
    """Take every cut through the three steps.

    While one chunk is computed (here), the next is read and the one before is written, each
    in a thread of its own: never more than one of each, so that two places to read into are
    enough. An error of any step ends the whole and is raised here.

    Args:
        cuts: start and stop of every chunk.
        read: gives a chunk.
        compute: makes of it what is written; must not hand out memory that it uses again.
        write: takes that.
    """
    if len(cuts) == 1:  # a thread would cost more than it saves
        write(compute(*cuts[0], read(*cuts[0])))
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead = reader.submit(read, *cuts[0])
        written: Future[None] | None = None
        for index, cut in enumerate(cuts):
            chunk = ahead.result()
            if index + 1 < len(cuts):
                ahead = reader.submit(read, *cuts[index + 1])
            made = compute(*cut, chunk)
            if written is not None:
                written.result()
            written = writer.submit(write, made)
        if written is not None:
            written.result()
