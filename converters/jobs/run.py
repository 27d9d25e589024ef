"""Run a task on items in shards. Skip items that are done already, and record those that finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import cast

from vbfmt.converters.jobs.inputs import require_distinct
from vbfmt.converters.jobs.journal import Journal
from vbfmt.converters.jobs.tasks import WRITES, Item, Outcome, Task
from vbfmt.errors import ConfigError

SHARD = 256
"""Largest number of items in a shard. It makes an engine's cost per shard negligible."""

_LEAST = 16
"""Smallest number of items in a shard of a large job."""

ENGINES = {"pool": "pool", "ray": "ray_cluster"}
"""Engine → its module in this package. Each module has `prepare(task, workers)`, called before the
job is planned, and `outcomes(task, shards, workers)`, which yields the number of a shard and its
outcomes, in any order."""

Engine = Callable[[Task, Sequence[Sequence[Item]], int], Iterator[tuple[int, list[Outcome]]]]


def run(
    task: Task,
    items: Sequence[Item],
    *,
    workers: int | None = None,
    engine: str = "pool",
    shard: int = SHARD,
) -> Iterator[Outcome]:
    """Run the task on every item. Yield outcomes as soon as they are known, in any order.

    Args:
        task: the operation.
        items: the items, from `vbfmt.converters.jobs.items`.
        workers: number of worker processes, at least 1; by default, the number of CPU cores.
        engine: name of an engine in `ENGINES`.
        shard: largest number of items that a worker gets at a time, at least 1.

    Raises:
        ConfigError: the engine is unknown, a number is less than 1, or outputs are in different
            folders.
        MissingExtraError: the engine's package is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError("unknown engine", part="`engine`", found=engine, expected=list(ENGINES))
    module = import_module(f"vbfmt.converters.jobs.{ENGINES[engine]}")
    outcomes = cast("Engine", module.outcomes)
    if workers is None:
        workers = os.cpu_count() or 1
    for name, number in (("workers", workers), ("shard", shard)):
        if not isinstance(number, int) or number < 1:
            raise ConfigError(
                "invalid number", part=f"`{name}`", found=repr(number), expected="at least 1"
            )
    if task.operation in WRITES:
        require_distinct(items)
    if task.store is not None:
        from vbfmt.store import Store

        Store(task.store, create=True).close()
    if len(items) > 1:
        module.prepare(task, workers)
    journal = _journal(task, items)
    remaining: list[Item] = []
    for item in items:
        digest = journal.digest_if_done(item) if journal and not item.overwrite else None
        if digest is not None:
            yield Outcome(item.source, item.output, "present", digest or None)
        else:
            remaining.append(item)
    shards = [_marked(part, journal) for part in _divided(remaining, workers, shard)]
    if journal is not None:
        # This must be done before anything is written: outputs that exist now were not written by
        # this job.
        journal.begin(item for part in shards for item in part)
    for number, found in outcomes(task, shards, workers):
        if journal is not None:
            journal.end(zip(shards[number], found, strict=True))
        yield from found


def _journal(task: Task, items: Sequence[Item]) -> Journal | None:
    if task.operation not in WRITES or task.store is not None or not items:
        return None
    folders = list(dict.fromkeys(os.path.dirname(item.output) for item in items))
    if len(folders) > 1:
        raise ConfigError(
            "the outputs of a job must be in one folder", found=" and ".join(folders[:2])
        )
    return Journal(folders[0], task)


def _divided(items: Sequence[Item], workers: int, most: int) -> Iterator[list[Item]]:
    """Yield shards of at most `most` items.

    They become smaller towards the end, so that all workers finish at about the same time.
    """
    least = max(1, min(_LEAST, len(items) // (16 * workers)))
    start = 0
    while start < len(items):
        share = -(-(len(items) - start) // (4 * workers))
        size = min(most, max(least, share))
        yield list(items[start : start + size])
        start += size


def _marked(shard: list[Item], journal: Journal | None) -> list[Item]:
    """Mark the items whose outputs this job may replace: those that an earlier run began to write,
    and those that do not exist now."""
    if journal is None:
        return shard
    return [
        replace(
            item,
            overwrite=item.overwrite or journal.is_begun(item),
            absent_before=not os.path.lexists(item.output),
        )
        for item in shard
    ]
