"""Writers that are killed at random moments."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.crashes.processes import (
    WRITERS,
    adapter,
    content,
    descendants,
    ended,
    forked,
    pool_of,
    wait_for_end,
)
from vbfmt import load
from vbfmt.converters import peft


def kill(folder: Path, count: int) -> dict[str, Any]:
    """Kill writers at random moments: the old or the new output is there and complete, and the next
    write removes all leftovers."""
    rng = random.Random(0)
    seen: collections.Counter[str] = collections.Counter()
    adapters = [adapter(0), adapter(1)]
    wanted, duration = {}, {}
    for name, write in WRITERS.items():
        both = []
        for number, one in enumerate(adapters):
            start = time.perf_counter()
            write(one, folder / f"{name}-{number}")
            duration[name] = time.perf_counter() - start
            both.append(content(folder / f"{name}-{number}"))
        wanted[name] = both
    for number in range(count):
        name = rng.choice(list(WRITERS))
        write, both = WRITERS[name], wanted[name]
        here = folder / f"round-{number}"
        here.mkdir()
        target = here / "x"
        exists = rng.random() < 0.8
        if exists:
            write(adapters[0], target)
        child = forked(lambda w=write, t=target, e=exists: w(adapters[1], t, overwrite=e))
        time.sleep(rng.random() * duration[name])
        os.kill(child, signal.SIGKILL)
        status = ended(child)
        assert status in (0, -signal.SIGKILL), status
        found = content(target)
        expected = [both[0] if exists else None, both[1]]
        assert found in expected, (number, name, exists)
        left = set(os.listdir(here)) - {"x"}
        if name == "save without its bank" and found is not None:
            assert load(target, banks=f"{here}-banks") in adapters
        # Adapt the time so that about one kill in four comes too late, on a busy machine as well.
        duration[name] *= 1 / 1.3 if found == both[1] else 1.1
        seen["killed"] += status == -signal.SIGKILL
        seen["old"] += found == expected[0]
        seen["new"] += found == expected[1]
        seen["left something behind"] += bool(left)
        write(adapters[1], target, overwrite=True)
        assert os.listdir(here) == ["x"], os.listdir(here)
        assert content(target) == both[1]
    return dict(seen)


def store_writers(folder: Path, count: int) -> dict[str, Any]:
    """Kill two writers of one store at random moments, while a collector runs: every adapter that a
    name points to is there and valid, and the next writer completes."""
    from vbfmt.store import ANY, Store, garbage

    garbage._PATIENCE = 0.2
    rng = random.Random(0)
    adapters = [adapter(seed) for seed in range(6)]
    store = Store(folder / "s", create=True)
    seen: collections.Counter[str] = collections.Counter()

    def write(seed: int) -> None:
        mine, order = Store(folder / "s"), random.Random(seed)
        while True:
            number = order.randrange(len(adapters))
            mine.add(adapters[number], name=f"n{order.randrange(3)}", replaces=ANY)
            seen["added"] += 1

    def collect() -> None:
        while True:
            Store(folder / "s").gc(grace=0.5)

    for number in range(count):
        children = [
            forked(lambda n=number: write(2 * n)),
            forked(lambda n=number: write(2 * n + 1)),
        ]
        if number % 3 == 0:
            children.append(forked(collect))
        time.sleep(0.02 + rng.random() * 0.15)
        for child in children:
            os.kill(child, signal.SIGKILL)
            status = ended(child)
            assert status == -signal.SIGKILL, status
            seen["killed"] += 1
        for name, digest in store.names().items():
            found = store.open(name)
            assert found.digest == digest
            assert found in adapters
            seen["names"] += 1
        bad = [str(problem) for report in store.verify() for problem in report.problems]
        assert not bad, bad
    for one in adapters:
        store.add(one)
    time.sleep(1)
    store.gc(grace=0.5)
    assert {entry.digest for entry in store.entries()} == {one.digest for one in adapters}
    left = list((folder / "s").rglob(".*.partial"))
    assert not left, left
    return dict(seen)


def jobs_killed(folder: Path, count: int) -> dict[str, Any]:
    """Kill a job at random moments and start it again: outputs are complete at every moment, and
    the last run completes with the same bytes as a job that is not killed."""
    rng = random.Random(0)
    sources, expected = _job(folder)
    seen: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    _pack(sources, folder / "warm")
    seconds = time.monotonic() - started
    while seen["killed"] < count:
        output = folder / f"packed-{seen['finished']}"
        child = forked(lambda output=output: _pack(sources, output))
        time.sleep(rng.random() * seconds / 2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        seen["killed"] += ended(child) == -signal.SIGKILL
        written = _packed(output)
        assert written.items() <= expected.items(), "an output is not whole"
        if len(written) < len(expected) and rng.random() < 0.9:
            continue
        seen["done before"] += _pack(sources, output)["present"]
        _require_finished(output, expected)
        seen["finished"] += 1
    return dict(seen)


def pool_killed(folder: Path, count: int) -> dict[str, Any]:
    """Kill a job with two worker processes at random moments, or one of these processes: outputs
    are complete, no process is left, and a job that lost a worker process completes.
    """
    rng = random.Random(0)
    sources, expected = _job(folder)
    seen: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    assert ended(forked(lambda: _pack(sources, folder / "warm", workers=2))) == 0
    seconds = time.monotonic() - started
    while seen["killed"] < count:
        output = folder / f"packed-{seen['started']}"
        seen["started"] += 1
        child = forked(lambda output=output: _pack(sources, output, workers=2))
        pool: list[int] = []
        if rng.random() < 0.5:
            time.sleep(rng.random() * seconds)
        else:
            pool = pool_of(child)
            time.sleep(rng.random() * seconds / 10)  # starting takes most of the time
        below = descendants(child)
        victim = rng.choice(pool) if pool and rng.random() < 0.7 else child
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        status = ended(child)
        assert status == 0 or (victim == child and status == -signal.SIGKILL), status
        wait_for_end({*below, *descendants(child)})
        assert _packed(output).items() <= expected.items(), "an output is not whole"
        if victim == child:
            seen["jobs"] += status != 0
            # Run this in a child process as well, because a fork server has one parent.
            assert ended(forked(lambda output=output: _pack(sources, output, workers=2))) == 0
        else:
            seen["workers"] += 1
        seen["killed"] = seen["jobs"] + seen["workers"]
        _require_finished(output, expected)
        shutil.rmtree(output)
    return dict(seen)


def _job(folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """Make checkpoints; return their paths, and the output files of a job that is not killed."""
    sources = [str(folder / "checkpoints" / f"user{number:02}") for number in range(24)]
    os.mkdir(folder / "checkpoints")
    for number, path in enumerate(sources):
        peft.write(adapter(number), path)
    _pack(sources, folder / "expected")
    return sources, _packed(folder / "expected")


def _pack(sources: list[str], output: Path, workers: int = 1) -> collections.Counter[str]:
    """Run a job that packs; return how many outcomes have each status."""
    from vbfmt.converters import jobs

    task = jobs.Task("pack")
    found = list(jobs.run(task, jobs.items(sources, output, task), workers=workers, shard=2))
    assert [each for each in found if not each.ok] == [], found
    return collections.Counter(each.status for each in found)


def _packed(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.vblora")}


def _require_finished(output: Path, expected: dict[str, bytes]) -> None:
    assert _packed(output) == expected
    assert not list(output.glob(".*.partial"))
