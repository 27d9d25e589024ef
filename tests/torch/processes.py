"""Run functions in two processes, and check their results."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import multiprocessing

Work = Callable[[int, Path], None]


def run_in_two_processes(works: Mapping[str, Work], folder: Path) -> None:
    """Call each function with the rank and the function's own folder, in one pair of processes.

    An error is written to ``error0`` or ``error1`` in the folder; `assert_done` shows it.
    """
    for name in works:
        (folder / name).mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_do, (dict(works), str(folder), port), nprocs=2)


def assert_done(folder: Path) -> None:
    """Check that both processes ended a function without an error."""
    errors = [path.read_text() for path in sorted(folder.glob("error*"))]
    assert errors == []
    assert len([*folder.glob("done*")]) == 2


def _do(rank: int, works: dict[str, Work], folder: str, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu",
    )  # fmt: skip
    torch.set_num_threads(1)
    for name, work in works.items():
        here = Path(folder, name)
        try:
            work(rank, here)
        except Exception:  # noqa: BLE001 - the test shows it
            (here / f"error{rank}").write_text(traceback.format_exc())
            break  # the other process may wait for this one
        (here / f"done{rank}").touch()
    os._exit(0)  # gloo's threads sometimes never end
