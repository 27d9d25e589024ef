"""Run a task over items: cut them into shards, skip what is done, note what is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import cast

from vbfmt.converters.jobs.journal import Journal
from vbfmt.converters.jobs.tasks import WRITES, Item, Outcome, Task
from vbfmt.errors import ConfigError

SHARD = 256
"""Items of a shard: what an engine costs for each is hidden by so many."""

ENGINES = {"pool": "pool", "ray": "ray_cluster"}
"""Engine → its module here. Each has `outcomes(task, shards, workers)`, which yields the number of
a shard and its outcomes, in any order."""

Engine = Callable[[Task, Sequence[Sequence[Item]], int], Iterator[tuple[int, list[Outcome]]]]


def run(
    task: Task,
    items: Sequence[Item],
    *,
    workers: int | None = None,
    engine: str = "pool",
    shard: int = SHARD,
) -> Iterator[Outcome]:
    """Run the task on every item and yield an outcome for each, as they come.

    Args:
        items: what `items` made of the inputs.
        workers: processes; as many as there are processors if not given.
        engine: of `ENGINES`.
        shard: items that a worker takes at a time, at the most.

    Raises:
        ConfigError: an unknown engine.
        MissingExtraError: the engine's package is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError("unknown engine", part="`engine`", found=engine, expected=list(ENGINES))
    outcomes = cast("Engine", import_module(f"vbfmt.converters.jobs.{ENGINES[engine]}").outcomes)
    workers = workers or os.cpu_count() or 1
    journal = _journal(task, items)
    left: list[Item] = []
    for item in items:
        digest = journal.is_done(item) if journal and not item.overwrite else None
        if digest is not None:
            yield Outcome(item.source, item.output, "present", digest or None)
        else:
            left.append(item)
    shards = [_owned(part, journal) for part in _cut(left, workers, shard)]
    if journal is not None:
        # Before anything is written; the outputs that are there belong to somebody else.
        journal.begin(item for part in shards for item in part)
    for number, found in outcomes(task, shards, workers):
        if journal is not None:
            journal.end(zip(shards[number], found, strict=True))
        yield from found


def _journal(task: Task, items: Sequence[Item]) -> Journal | None:
    writes = task.operation in WRITES and task.store is None
    return Journal(os.path.dirname(items[0].output), task) if writes and items else None


def _cut(items: Sequence[Item], workers: int, most: int) -> Iterator[list[Item]]:
    """Shards of at most `most` items, and at least four for each worker where there are enough."""
    size = max(1, min(most, -(-len(items) // (4 * workers))))
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _owned(shard: list[Item], journal: Journal | None) -> list[Item]:
    """Mark the outputs that are this job's: begun by an earlier run, or not there yet."""
    if journal is None:
        return shard
    return [
        replace(
            item,
            overwrite=item.overwrite or journal.is_begun(item),
            ours=not os.path.lexists(item.output),
        )
        for item in shard
    ]
