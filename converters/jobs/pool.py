"""The engine for this machine: a pool of spawned processes, each with one shard at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from vbfmt.converters.jobs.tasks import Item, Outcome, Task, run_shard

_GIVE_UP = 3
"""After so many consecutive items that each killed a process of its own, no more are tried."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def outcomes(
    task: Task, shards: Sequence[Sequence[Item]], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Yield the number of each shard and its outcomes, in any order.

    If a worker dies (out of memory, a signal), each item of its shard runs again in a process of
    its own; items whose process dies again have failed.
    """
    if workers == 1 or len(shards) == 1:
        for number, shard in enumerate(shards):
            yield number, run_shard(task, shard)
        return
    with _one_thread_each():
        executor = _executor(min(workers, len(shards) or 1))
        lost: list[int] = []
        with executor:
            futures: dict[Future[list[Outcome]], int] = {
                executor.submit(run_shard, task, shard): number
                for number, shard in enumerate(shards)
            }
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    lost.append(futures[future])
        yield from _one_by_one(task, shards, lost)


def _one_by_one(
    task: Task, shards: Sequence[Sequence[Item]], lost: Sequence[int]
) -> Iterator[tuple[int, list[Outcome]]]:
    """Rerun the shards whose worker died, with a process for each item.

    After `_GIVE_UP` consecutive items whose process died, the others fail untried.
    """
    dead = 0
    for number in lost:
        found = []
        for item in shards[number]:
            outcome = _alone(task, item.for_retry()) if dead < _GIVE_UP else _died(item)
            dead = dead + 1 if outcome.kind == "worker" else 0
            found.append(outcome)
        yield number, found


def _alone(task: Task, item: Item) -> Outcome:
    with _executor(1) as executor:
        try:
            return executor.submit(run_shard, task, [item]).result()[0]
        except BrokenProcessPool:
            return _died(item)


def _died(item: Item) -> Outcome:
    message = "the worker process died; if memory ran out, try fewer workers with --jobs"
    return Outcome(item.source, item.output, "failed", kind="worker", message=message)


def _executor(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


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
