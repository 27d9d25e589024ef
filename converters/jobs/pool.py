"""The engine for this machine: a pool of processes, each with one shard at a time.

`concurrent.futures.ProcessPoolExecutor` is not used: if a worker dies while another one is being
started, CPython 3.11's executor waits for ever for the new one.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator, Sequence

from vbfmt.converters.jobs.tasks import Item, Outcome, Task, run_shard
from vbfmt.converters.jobs.worker import (
    Shard,
    Worker,
    affordable,
    ready,
    start_server,
    stop,
    stopped_at_end,
)

_GIVE_UP = 3
"""After so many consecutive items that each killed a process of its own, no more are tried."""


def prepare(task: Task, workers: int) -> None:
    """Start what the workers need while the job is planned."""
    if affordable(workers) > 1:
        start_server(task)


def outcomes(
    task: Task, shards: Sequence[Sequence[Item]], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Yield the number of each shard and its outcomes, in any order.

    If a worker dies (out of memory, a signal), its shard runs again, in a process of its own, when
    the other workers have finished theirs. If that dies too, each item of the shard runs in a
    process of its own, and items whose process dies again have failed. After `_GIVE_UP` consecutive
    ones no more are tried.

    This process runs the shards itself if there is one worker, if the limit of open files allows no
    more, or if it may start none (a daemon of `multiprocessing`).
    """
    workers = affordable(workers)
    if workers == 1 or len(shards) <= 1 or multiprocessing.current_process().daemon:
        for number, shard in enumerate(shards):
            yield number, run_shard(task, shard)
        return
    waiting = deque(enumerate(shards))
    dead = 0
    while waiting:
        for number, shard in (yield from _until_one_dies(task, waiting, workers)):
            if dead >= _GIVE_UP:
                yield number, [_died(item) for item in shard]
                continue
            found, dead = _suspected(task, [item.for_retry() for item in shard])
            yield number, found
        if dead >= _GIVE_UP:
            yield from ((number, [_died(item) for item in shard]) for number, shard in waiting)
            return


def _until_one_dies(
    task: Task, waiting: deque[Shard], workers: int
) -> Generator[tuple[int, list[Outcome]], None, list[Shard]]:
    """Run shards from `waiting` and yield their outcomes until a worker dies.

    The other workers finish their shards then.

    Returns:
        the shards whose workers died.
    """
    lost: list[Shard] = []
    with stopped_at_end() as running:
        while running or (waiting and not lost):
            while waiting and not lost and len(running) < workers:
                running.append(Worker(task, waiting.popleft()))
            for worker in ready(running):
                number, found = worker.shard[0], worker.outcomes()
                if found is None:
                    lost.append(worker.shard)
                if not lost and waiting and worker.run(waiting[0]):
                    waiting.popleft()
                else:
                    running.remove(worker)
                    stop([worker])
                if found is not None:
                    yield number, found
    return lost


def _suspected(task: Task, shard: Sequence[Item]) -> tuple[list[Outcome], int]:
    """Rerun a shard whose worker may have died of it; return the outcomes, and how many of the last
    items died consecutively."""
    found = _alone(task, shard)
    if found is not None:
        return found, 0
    found, dead = [], 0
    for item in shard:
        alone = _alone(task, [item.for_retry()]) if dead < _GIVE_UP else None
        dead = dead + 1 if alone is None else 0
        found += alone or [_died(item)]
    return found, dead


def _alone(task: Task, shard: Sequence[Item]) -> list[Outcome] | None:
    """Return the outcomes of a shard run in a process of its own, None if that dies."""
    with stopped_at_end() as running:
        running.append(Worker(task, (0, shard)))
        return running[0].outcomes()


def _died(item: Item) -> Outcome:
    message = "the worker process died; if memory ran out, give fewer `workers`"
    return Outcome(item.source, item.output, "failed", kind="worker", message=message)
