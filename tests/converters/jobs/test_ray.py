"""The Ray engine: the same files as with the pool, and all of them even if a worker dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

from tests.converters.jobs.test_jobs import COUNT, checkpoints, files, run
from vbfmt.converters import jobs

pytestmark = pytest.mark.slow
__all__ = ["checkpoints"]


def test_the_same_bytes_as_the_pool(checkpoints, tmp_path):
    run(checkpoints, tmp_path / "pool", workers=1)
    outcomes = run(checkpoints, tmp_path / "ray", workers=2, engine="ray")
    assert len(outcomes) == COUNT
    assert files(tmp_path / "ray") == files(tmp_path / "pool")
    assert len(files(tmp_path / "ray")) == COUNT - 1


def workers():
    """Yield the processes of Ray that run a task."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::") and b"_shard" in command:
                yield int(folder.name)


def test_a_job_completes_although_a_worker_is_killed(checkpoints, tmp_path):
    killed: list[int] = []
    stop = threading.Event()

    def kill_one():
        while not stop.is_set() and not killed:
            for process in workers():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                break
            time.sleep(0.01)

    task = jobs.Task("pack")
    items = jobs.items(jobs.collected([f"{checkpoints}/*"]), tmp_path / "packed", task)
    killer = threading.Thread(target=kill_one)
    killer.start()
    outcomes = list(jobs.run(task, items, workers=2, engine="ray", shard=1))
    stop.set()
    killer.join()
    assert killed
    assert len(outcomes) == COUNT
    failed = [os.path.basename(each.source) for each in outcomes if not each.ok]
    assert failed == ["user07"]
    assert len(files(tmp_path / "packed")) == COUNT - 1
