"""The engine for a Ray cluster: the one that RAY_ADDRESS names, or a local one.

Inputs and outputs must have paths that all workers can read and write.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from vbfmt.converters.jobs.tasks import Item, Outcome, Task, run_shard
from vbfmt.errors import MissingExtraError

_RETRIES = 3
_AT_ONCE = 4
"""Number of shards that are queued for each worker."""

_logger = logging.getLogger(__name__)


def prepare(task: Task, workers: int) -> None:
    """Do nothing: a cluster is started only when there is work for it."""


def outcomes(
    task: Task, shards: Sequence[Sequence[Item]], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Yield the number of each shard and its outcomes, in any order.

    A shard whose worker dies is retried up to three times. After that, its items have failed.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError.of("the engine ray needs Ray", "ray") from None
    started = not ray.is_initialized()
    if started:
        local = "RAY_ADDRESS" not in os.environ
        ray.init(
            **({"num_cpus": workers, "include_dashboard": False} if local else {}),
            log_to_driver=False,
            configure_logging=False,
        )
    try:
        yield from _outcomes(ray, task, shards, workers)
    finally:
        if started:
            ray.shutdown()


def _outcomes(
    ray: Any, task: Task, shards: Sequence[Sequence[Item]], workers: int
) -> Iterator[tuple[int, list[Outcome]]]:
    # Ray itself must not retry a shard, because a retry must be allowed to replace outputs of the
    # first attempt. It passes the function by name, so the worker imports the library.
    remote = ray.remote(max_retries=0)(run_shard)
    waiting = iter(enumerate(shards))
    running: dict[Any, int] = {}
    tries: dict[int, int] = {}

    def fill() -> None:
        while len(running) < _AT_ONCE * workers:
            step = next(waiting, None)
            if step is None:
                return
            number, shard = step
            running[remote.remote(task, list(shard))] = number

    fill()
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ready)
        try:
            yield number, ray.get(ready)
        except ray.exceptions.RayError as error:
            name = type(error).__name__
            tries[number] = tries.get(number, 0) + 1
            if tries[number] <= _RETRIES:
                _logger.info("%s: %d inputs run again", name, len(shards[number]))
                running[remote.remote(task, [each.for_retry() for each in shards[number]])] = number
                continue
            failed: dict[str, Any] = {"status": "failed", "kind": "worker", "message": name}
            yield number, [Outcome(i.source, i.output, **failed) for i in shards[number]]
        fill()
