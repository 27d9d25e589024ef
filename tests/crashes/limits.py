"""Writers and readers that reach a limit of the system."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.crashes.processes import adapter, ended, forked
from vbfmt import Tensor, errors, load, save
from vbfmt._files import staging
from vbfmt.converters import peft, read


def size_limit(folder: Path, count: int) -> dict[str, Any]:
    """Limit the length of files, to every length in turn: the write is refused and the old file
    unchanged."""
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
    """Let the Nth allocation of Python fail, for every N: the old or the new output is there and
    complete. (All allocations from the Nth on cannot be tested, because CPython 3.11 then unwinds
    forever.)"""
    import _testcapi

    old, new = adapter(0), adapter(1)
    target = folder / "x"
    save(new, target)
    after = target.read_bytes()
    save(old, target, overwrite=True)
    before = target.read_bytes()
    seen: collections.Counter[str] = collections.Counter()
    number, in_a_row = 0, 0
    while in_a_row < 50:  # more than any run of unused numbers

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
    """Limit the memory of a process more and more: it reads and writes, or reports too little
    memory."""
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


def read_only(folder: Path, count: int) -> dict[str, Any]:
    """Write into a folder without write permission: it is refused, and nothing in the folder
    changes."""
    # Do not use `folder`, because other users than root cannot read it.
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        target = here / "x"
        save(adapter(0), target)
        before = target.read_bytes()

        def work(path: Path, overwrite: bool) -> None:
            if os.getuid() == 0:
                os.setuid(65534)  # root ignores permissions
            save(adapter(1), path, overwrite=overwrite)

        def statuses() -> list[int]:
            over = ended(forked(lambda: work(target, True)))
            return [over, ended(forked(lambda: work(here / "y", False)))]

        here.chmod(0o555)
        assert statuses() == [1, 1]
        assert target.read_bytes() == before
        assert os.listdir(here) == ["x"]
        here.chmod(0o777)
        assert statuses() == [0, 0]  # only the permission was missing
    return {"refused": 2}


def cut_off(folder: Path, count: int) -> dict[str, Any]:
    """Truncate a file while it is in use: a process that has mapped it ends; one that has read it
    continues."""
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


def disk_full(folder: Path, _: int) -> dict[str, Any]:
    """Fill a disk (the folder is a small file system) with a store and with a job: existing files
    stay complete, the error is one line, and the work continues when there is space again."""
    from vbfmt.converters import jobs
    from vbfmt.store import Store

    seen: collections.Counter[str] = collections.Counter()
    store = Store(folder / "s", create=True)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(300_000))
    digests = {}
    with contextlib.suppress(errors.StorageError):
        for number in range(10_000):
            one = adapter(number)
            digests[f"n{number}"] = one.digest
            store.add(one, name=f"n{number}")
            seen["added"] += 1
    digests.popitem()  # the last one was refused
    for _ in range(3):
        with pytest.raises(errors.StorageError, match=r"^[^\n]*[Nn]o space left[^\n]*$"):
            store.add(adapter(10_000), name="x")
        seen["refused"] += 1
    again = Store(folder / "s")
    names = again.names()
    assert names == digests, (len(names), len(digests))
    for name in names:
        assert again.open(name).digest == digests[name]
    assert all(report.ok for report in again.verify())

    sources = [folder.parent / f"checkpoint-{number}" for number in range(3)]
    for number, source in enumerate(sources):
        peft.write(adapter(number), source)
    task = jobs.Task("pack")
    items = jobs.items([str(source) for source in sources], folder / "packed", task)
    try:
        failed = [each.kind for each in jobs.run(task, items, workers=1) if not each.ok]
        assert set(failed) <= {"storage"}, failed
        seen["jobs refused"] += bool(failed)
    except OSError:  # the journal could not be written, so nothing started
        seen["jobs refused"] += 1

    ballast.unlink()  # a collection needs space for its marks
    for name in list(names)[: len(names) // 2]:
        again.untag(name)
    again.gc(grace=0)
    assert again.add(adapter(10_000), name="x") == adapter(10_000).digest
    assert again.open("x") == adapter(10_000)
    outcomes = list(jobs.run(task, items, workers=1))
    assert all(each.ok for each in outcomes), outcomes
    for item in items:
        assert load(item.output) == read(item.source)
    left = list(folder.rglob(".*.partial"))
    assert not left, left
    return dict(seen)
