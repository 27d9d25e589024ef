"""All cores for numpy work that lets go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def for_each(
    items: Sequence[T], work: Callable[[T, S], None], scratch: Callable[[], S], *, alone: bool
) -> None:
    """Call ``work(item, scratch)`` for every item, each worker with a scratch space of its own.

    Args:
        alone: one worker only: for work so small that starting threads would cost more.

    Raises:
        Whatever `work` raises; of several, that of the earliest item.
    """
    workers = 1 if alone else min(cores(), len(items))
    if workers <= 1:
        space = scratch()
        for item in items:
            work(item, space)
        return

    queue = iter(enumerate(items))
    faults: list[tuple[int, BaseException]] = []

    def worker() -> None:
        space = scratch()
        for position, item in queue:
            try:
                work(item, space)
            except BaseException as fault:  # noqa: BLE001 - handed to the caller below
                faults.append((position, fault))
                return

    threads = [Thread(target=worker) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise min(faults, key=lambda pair: pair[0])[1]
