"""Child processes, and what they write."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vbfmt import Adapter, Module, Rows, errors, save
from vbfmt.converters import lora, peft

H, B, IN, OUT = 200, 64, 512, 512


def adapter(seed: int) -> Adapter:
    """Return an adapter of about 60 kB, a different one for each seed."""
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
    """Save with the bank in a separate folder, so that other files next to `path` can be
    counted."""
    save(one, path, overwrite=overwrite, bank="external", banks=f"{path.parent}-banks")


WRITERS: dict[str, Callable[..., object]] = {
    "save": save,
    "save without its bank": save_without_bank,
    "unpack": peft.write,
    "expand": lora.write,
}


def content(path: Path) -> object:
    """Return the content of a path: the bytes of a file, the bytes by name of a folder, or None."""
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}
    return path.read_bytes() if path.exists() else None


def forked(work: Callable[[], object]) -> int:
    """Fork a child that does `work` and exits with 0, or with 1 on an error of the library."""
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
    """Return the exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def descendants(process: int) -> dict[int, int]:
    """Return the descendants of a process, each with its depth."""
    found: dict[int, int] = {}
    below = [(process, 0)]
    while below:
        one, depth = below.pop()
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:  # it has ended
            continue
        below += [(int(child), depth + 1) for child in children]
        found.update((int(child), depth + 1) for child in children)
    return found


def pool_of(job: int, seconds: float = 20) -> list[int]:
    """Wait for the worker processes of a job, which are children of its fork server, and return
    them. Return none if the job ends first."""
    last = time.monotonic() + seconds
    while _lives(job) and time.monotonic() < last:
        if found := [one for one, depth in descendants(job).items() if depth == 2]:
            return found
        time.sleep(0.001)
    return []


def wait_for_end(processes: set[int], seconds: float = 20) -> None:
    """Wait until all processes have ended; fail if one has not after this number of seconds."""
    last = time.monotonic() + seconds
    while living := [one for one in processes if _lives(one)]:
        assert time.monotonic() < last, living
        time.sleep(0.01)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
