"""The engine for this machine: a pool of processes, each with one shard at a time.

The processes are forked from a server that has imported this library and has no other threads, or
spawned on systems without fork servers. They end when the process that runs the job ends, however
it ends.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from vbfmt.converters.jobs.tasks import MODULES, Item, Outcome, Task, run_shard

_GIVE_UP = 3
"""After so many consecutive items that each killed a process of its own, no more are tried."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Shard = tuple[int, Sequence[Item]]
"""A shard's number and items."""


def prepare(task: Task, workers: int) -> None:
    """Start the fork server, which imports this library while the job is planned."""
    if workers > 1 and "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        preloaded = ["__main__", __name__, *MODULES[task.operation]]
        multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
        with _one_thread_each():
            forkserver.ensure_running()


def outcomes(
    task: Task, shards: Sequence[Sequence[Item]], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Yield the number of each shard and its outcomes, in any order.

    If a worker dies (out of memory, a signal), the shards that were running run again, each in a
    process of its own. If that dies too, each item of the shard runs in a process of its own, and
    items whose process dies again have failed. After `_GIVE_UP` consecutive ones no more are tried.
    """
    if workers == 1 or len(shards) <= 1:
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
    """Run shards from `waiting` and yield their outcomes; return the shards that were running when
    a worker died."""
    running: dict[Future[list[Outcome]], Shard] = {}
    with _executor(min(workers, len(waiting))) as executor:
        try:
            while waiting or running:
                while waiting and len(running) <= workers:  # one more than can run
                    running[executor.submit(run_shard, task, waiting[0][1])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    found = future.result()
                    yield running.pop(future)[0], found
        except BrokenProcessPool:
            pass
    return list(running.values())


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
    with _executor(1) as executor:
        try:
            return executor.submit(run_shard, task, shard).result()
        except BrokenProcessPool:
            return None


def _died(item: Item) -> Outcome:
    message = "the worker process died; if memory ran out, try fewer workers with --jobs"
    return Outcome(item.source, item.output, "failed", kind="worker", message=message)


def _executor(workers: int) -> ProcessPoolExecutor:
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(environment,)
    )


def _begin(environment: Mapping[str, str]) -> None:
    """Prepare a worker: set the caller's environment, which may differ from the server's, and end
    with the caller."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


class _one_thread_each:  # noqa: N801 - used as a function
    """Let numerical libraries in new processes use one thread: the workers use all processors."""

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
