"""Several processes that write one path concurrently."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

from tests.crashes.processes import WRITERS, adapter, content, ended, forked
from vbfmt import Adapter, load, save
from vbfmt.converters import lora, peft


def writers(folder: Path, count: int) -> dict[str, Any]:
    """Let eight processes write one path while this process reads it: it always finds one complete
    output."""
    adapters = [adapter(seed) for seed in range(8)]
    target = folder / "x"
    save(adapters[0], target)

    def work(mine: Adapter) -> None:
        for _ in range(count):
            save(mine, target, overwrite=True)

    children = {forked(lambda mine=mine: work(mine)) for mine in adapters}
    seen: collections.Counter[str] = collections.Counter()
    while children:
        found = load(target, mmap=False)
        which = int(found.metadata["seed"])
        assert found == adapters[which]
        seen[str(which)] += 1
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            assert os.waitstatus_to_exitcode(status) == 0
            children.remove(child)
    assert os.listdir(folder) == ["x"]
    return {"reads": sum(seen.values()), "writers seen": len(seen)}


def first_wins(folder: Path, count: int) -> dict[str, Any]:
    """Let eight processes create one path: one succeeds, the others fail with an error."""
    adapters = [adapter(seed) for seed in range(8)]
    for kind, write in WRITERS.items():
        for number in range(count):
            target = folder / f"{kind}-{number}"
            statuses = [
                ended(child)
                for child in [
                    forked(lambda mine=mine, w=write, t=target: w(mine, t)) for mine in adapters
                ]
            ]
            assert sorted(statuses) == [0] + [1] * 7, (kind, statuses)
            winner = folder / f"{kind}-winner"
            write(adapters[statuses.index(0)], winner, overwrite=True)
            assert content(target) == content(winner), kind
    assert all(not name.startswith(".") for name in os.listdir(folder))
    return {"races": count * len(WRITERS)}


def folders(folder: Path, count: int) -> dict[str, Any]:
    """Let eight processes replace one folder: in the end, all its files are those of one of
    them."""
    for kind, write in (("unpack", peft.write), ("expand", lora.write)):
        wanted = []
        for seed in range(8):
            write(adapter(seed), folder / f"{kind}-{seed}")
            wanted.append(content(folder / f"{kind}-{seed}"))
        target = folder / kind
        write(adapter(0), target)
        for _ in range(count):
            children = [
                forked(lambda s=seed, w=write, t=target: w(adapter(s), t, overwrite=True))
                for seed in range(8)
            ]
            assert [ended(child) for child in children] == [0] * 8
            assert content(target) in wanted
    assert all(not name.startswith(".") for name in os.listdir(folder))
    return {"rounds": 2 * count}
