"""Use threads on all cores, for NumPy operations that release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


def cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def for_each(
    items: Sequence[T], work: Callable[[T, S], None], scratch: Callable[[], S], *, alone: bool
) -> None:
    """Call ``work(item, scratch)`` for every item. Each worker has its own scratch space.

    Args:
        scratch: a function that creates a worker's scratch space.
        alone: use only one worker, for work that takes less time than starting threads.

    Raises:
        Exception: the error that `work` raised for the first item that failed.
    """
    workers = 1 if alone else min(cores(), len(items))
    if workers <= 1:
        space = scratch()
        for item in items:
            work(item, space)
        return

    queue = iter(enumerate(items))
    errors: list[tuple[int, BaseException]] = []

    def worker() -> None:
        space = scratch()
        for position, item in queue:
            try:
                work(item, space)
            except BaseException as error:  # noqa: BLE001 - raised in the caller below
                errors.append((position, error))
                return

    threads = [Thread(target=worker) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
