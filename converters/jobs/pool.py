"""The engine for one machine: a pool of processes, each of which runs one shard at a time.

`concurrent.futures.ProcessPoolExecutor` is not used: if a worker dies while another is being
started, CPython 3.11's executor waits forever for the new one.
"""

from __future__ import annotations

import logging
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

_logger = logging.getLogger(__name__)

_GIVE_UP = 3
"""After this number of consecutive items whose processes died, the other items are not tried."""


def prepare(task: Task, workers: int) -> None:
    """Start the fork server in advance, while the job is planned."""
    if affordable(workers) > 1:
        start_server(task)


def outcomes(
    task: Task, shards: Sequence[Sequence[Item]], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Yield the number of each shard and its outcomes, in any order.

    If a worker dies (out of memory, a signal), the other workers finish their shards, and then its
    shard runs again in a new process. If that process dies too, each item of the shard runs in its
    own process, and an item whose process dies has failed. After `_GIVE_UP` consecutive failures,
    the other items are not tried.

    This process runs the shards itself if `workers` is 1, if the limit on open files allows only
    one worker, or if it may not start processes (a daemon of `multiprocessing`).
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
            _logger.info("a worker process died; its %d inputs run again", len(shard))
            found, dead = _suspected(task, [item.for_retry() for item in shard])
            yield number, found
        if dead >= _GIVE_UP:
            yield from ((number, [_died(item) for item in shard]) for number, shard in waiting)
            return


def _until_one_dies(
    task: Task, waiting: deque[Shard], workers: int
) -> Generator[tuple[int, list[Outcome]], None, list[Shard]]:
    """Run shards from `waiting` and yield their outcomes until a worker dies.

    The other workers then finish their shards.

    Returns:
        The shards whose workers died.
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
    """Rerun a shard whose worker died, possibly because of an item in it.

    Returns:
        The outcomes, and how many consecutive processes had died at the end.
    """
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
    """Run a shard in its own process. Return the outcomes, or None if the process dies."""
    with stopped_at_end() as running:
        running.append(Worker(task, (0, shard)))
        return running[0].outcomes()


def _died(item: Item) -> Outcome:
    message = "the worker process died; if memory ran out, give fewer `workers`"
    return Outcome(item.source, item.output, "failed", kind="worker", message=message)
