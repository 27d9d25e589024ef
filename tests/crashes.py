"""Processes that are killed, run into limits, or get in each other's way: ``python -m
tests.crashes WHAT FOLDER [COUNT]`` prints what was seen as JSON, and fails if anything was wrong.

Apart from the tests' own process, so that it may fork: nothing here has started a thread.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vbfmt import Adapter, Module, Rows, Tensor, errors, load, save
from vbfmt._files import staging
from vbfmt.converters import lora, peft

H, B, IN, OUT = 200, 64, 512, 512


def adapter(seed: int) -> Adapter:
    """An adapter of some 60 kB, a different one for each seed."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name in ("a.lin", "b.lin"):
        module = Module(name, IN, OUT, 4)
        first = rng.integers(0, H, module.rows(B))
        indices = np.stack([first, (first + 1) % H], axis=1).astype("u1")
        rows[module] = Rows(indices, np.full((len(first), 1), 0.25, "<f4"))
    bank = rng.standard_normal((H, B))
    return Adapter.from_rows(bank, rows, base_model="base", metadata={"seed": str(seed)})


def save_without_bank(one: Adapter, path: Path, *, overwrite: bool = False) -> None:
    """The bank in a folder of its own, so that what is beside `path` can be counted."""
    save(one, path, overwrite=overwrite, bank="external", banks=f"{path.parent}-banks")


WRITERS: dict[str, Callable[..., object]] = {
    "save": save,
    "save without its bank": save_without_bank,
    "unpack": peft.write,
    "expand": lora.write,
}


def content(path: Path) -> object:
    """What stands at a path: bytes, bytes by name, or None."""
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}
    return path.read_bytes() if path.exists() else None


def forked(work: Callable[[], object]) -> int:
    """A child that does `work`, and ends with 0, or 1 if it fails with the library's own error."""
    child = os.fork()
    if child:
        return child
    status = 2
    try:
        work()
        status = 0
    except errors.VbfmtError as error:
        print(error, file=sys.stderr)
        status = 1
    except BaseException as error:  # noqa: BLE001 - a child must not run on in the parent's code
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(folder: Path, count: int) -> dict[str, Any]:
    """Kill writers at random moments: the old or the new is there, and complete; the next write
    leaves nothing else."""
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
        # So that one in four comes too late, however busy the machine is.
        duration[name] *= 1 / 1.3 if found == both[1] else 1.1
        seen["killed"] += status == -signal.SIGKILL
        seen["old"] += found == expected[0]
        seen["new"] += found == expected[1]
        seen["left something behind"] += bool(left)
        write(adapters[1], target, overwrite=True)
        assert os.listdir(here) == ["x"], os.listdir(here)
        assert content(target) == both[1]
    return dict(seen)


def size_limit(folder: Path, count: int) -> dict[str, Any]:
    """No file may be longer than some bytes, for every length: refused, the old one untouched."""
    old, new = adapter(0), adapter(1)
    target = folder / "x"
    save(old, target)
    before, length = target.read_bytes(), target.stat().st_size
    refused = 0
    for limit in range(0, length, max(1, length // count)):

        def work(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(new, target, overwrite=True)

        assert ended(forked(work)) == 1, limit
        refused += 1
        assert target.read_bytes() == before
        assert os.listdir(folder) == ["x"]
    return {"refused": refused, "length": length}


def memory(folder: Path, count: int) -> dict[str, Any]:
    """The Nth allocation of Python's own fails, for every N: the old or the new, complete. (All
    from the Nth on is no test of ours: CPython 3.11 itself then unwinds for ever.)"""
    import _testcapi

    old, new = adapter(0), adapter(1)
    target = folder / "x"
    save(new, target)
    after = target.read_bytes()
    save(old, target, overwrite=True)
    before = target.read_bytes()
    seen: collections.Counter[str] = collections.Counter()
    number, in_a_row = 0, 0
    while in_a_row < 50:  # so many are more than the calls between two allocations that matter

        def work(number: int = number) -> None:
            try:
                _testcapi.set_nomemory(number, number + 1)
                save(new, target, overwrite=True)
            except Exception:  # noqa: BLE001 - CPython makes a TypeError of some
                os._exit(3)
            finally:
                _testcapi.remove_mem_hooks()

        status = ended(forked(work))
        assert status in (0, 1, 3), (number, status)
        found = target.read_bytes()
        assert found in ((before, after) if status else (after,)), (number, status)
        seen["failed" if status else "written"] += 1
        in_a_row = 0 if status else in_a_row + 1
        number += 1
        if found == after:
            save(old, target, overwrite=True)
        else:
            staging.sweep(str(target))
        assert os.listdir(folder) == ["x"], number
    return dict(seen)


def address_space(folder: Path, count: int) -> dict[str, Any]:
    """A process may take no more memory than some, of which there is less and less: it reads and
    writes, or says that there is too little."""
    large = Tensor("U8", (8 << 20,), np.zeros(8 << 20, "u1"))
    old, new = (dataclasses.replace(adapter(seed), tensors={"t": large}) for seed in (0, 1))
    target = folder / "x"
    save(new, target)
    after = target.read_bytes()
    save(old, target, overwrite=True)
    before = target.read_bytes()
    seen: collections.Counter[str] = collections.Counter()
    room = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for more in range(count, -1, -1):

        def work(more: int = more) -> None:
            limit = room + more * (5 << 19)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            try:
                found = load(target, mmap=False)
                save(found, folder / "y", overwrite=True)
                save(new, target, overwrite=True)
            except MemoryError:
                os._exit(3)

        status = ended(forked(work))
        assert status in (0, 1, 3), (more, status)
        found = target.read_bytes()
        assert found in ((before, after) if status else (after,)), (more, status)
        seen[{0: "written", 1: "refused", 3: "MemoryError"}[status]] += 1
        save(old, target, overwrite=True)
        save(old, folder / "y", overwrite=True)
        assert sorted(os.listdir(folder)) == ["x", "y"]
    return dict(seen)


def writers(folder: Path, count: int) -> dict[str, Any]:
    """Eight write one path at once, while this process reads: always one of them, complete."""
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
    """Eight make one new path at once: one of them succeeds, the others are told so."""
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
    """Eight replace one folder at once: in the end its files are those of one of them."""
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


def read_only(folder: Path, count: int) -> dict[str, Any]:
    """A folder without the right to write: refused, and nothing in it has changed."""
    # Not in `folder`: whoever is not root could not even look into that.
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        target = here / "x"
        save(adapter(0), target)
        before = target.read_bytes()

        def work(path: Path, overwrite: bool) -> None:
            if os.getuid() == 0:
                os.setuid(65534)  # root may do anything
            save(adapter(1), path, overwrite=overwrite)

        def statuses() -> list[int]:
            over = ended(forked(lambda: work(target, True)))
            return [over, ended(forked(lambda: work(here / "y", False)))]

        here.chmod(0o555)
        assert statuses() == [1, 1]
        assert target.read_bytes() == before
        assert os.listdir(here) == ["x"]
        here.chmod(0o777)
        assert statuses() == [0, 0]  # it was the permission alone
    return {"refused": 2}


def cut_off(folder: Path, count: int) -> dict[str, Any]:
    """A file is cut off while it is in use: mapped, the process ends; read, nothing happens."""
    target = folder / "x"
    statuses = {}
    for mapped in (True, False):
        save(adapter(0), target, overwrite=True)

        def work(mapped: bool = mapped) -> None:
            found = load(target, mmap=mapped)
            with open(target, "r+b") as stream:
                stream.truncate(100)
            assert found == adapter(0)

        statuses["mapped" if mapped else "read"] = ended(forked(work))
    assert statuses == {"mapped": -signal.SIGBUS, "read": 0}, statuses
    return statuses


def store_writers(folder: Path, count: int) -> dict[str, Any]:
    """Kill two writers of one store at random moments, while a collector runs: whatever a name
    points to is there and sound, and the next writer finishes the job."""
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


SCENES = {
    scene.__name__: scene
    for scene in (
        kill,
        size_limit,
        memory,
        address_space,
        writers,
        first_wins,
        folders,
        read_only,
        cut_off,
        store_writers,
    )
}


def main(what: str, folder: str, count: str = "20") -> None:
    """Play one scene."""
    print(json.dumps(SCENES[what](Path(folder), int(count))))


if __name__ == "__main__":
    main(*sys.argv[1:])
