"""The rows of a benchmark's table, and functions that measure processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measurement of vbfmt and of its peer, and the bound for their ratio.

    Attributes:
        what: what is measured.
        ours, peer: the measurements as text, with units.
        ratio: ours / peer, or ours if there is no peer.
        bound: the largest `ratio` that is accepted; None for a row without a bound.
    """

    what: str
    ours: str
    peer: str
    ratio: float
    bound: float | None

    @property
    def reached(self) -> bool:
        """Return whether the ratio is within the bound."""
        return self.bound is None or self.ratio <= self.bound


@dataclass(frozen=True)
class Run:
    """The wall-clock seconds and peak resident bytes of a process."""

    seconds: float
    peak: int


def print_table(rows: Iterable[Row]) -> bool:
    """Print the rows as Markdown, each when it is measured. Return whether all bounds are
    reached."""
    print("| what | vbfmt | peer | ratio | bound | |")
    print("|---|---|---|---|---|---|", flush=True)
    reached = True
    for row in rows:
        bound, verdict = "", ""
        if row.bound is not None:
            bound, verdict = f"≤ {row.bound:.3g}", "reached" if row.reached else "MISSED"
        print(
            f"| {row.what} | {row.ours} | {row.peer} | {row.ratio:.3g} | {bound} | {verdict} |",
            flush=True,
        )
        reached = reached and row.reached
    return reached


def run(command: Sequence[str], *, times: int = 1) -> Run:
    """Run a process `times` times and return the fastest run. Every run must succeed."""
    return in_turns(command, times=times)[0]


def in_turns(*commands: Sequence[str], times: int) -> list[Run]:
    """Run several processes in turns, `times` times, and return the fastest run of each.

    In turns, other work on the machine slows all of them.
    """
    rounds = [[_run_once(command) for command in commands] for _ in range(times)]
    return [min(runs, key=lambda run: run.seconds) for runs in zip(*rounds, strict=True)]


def run_python(code: str, *arguments: str, times: int = 1) -> Run:
    """Run a Python program, given as text, as `run` does."""
    return run(python(code, *arguments), times=times)


def python(code: str, *arguments: str) -> list[str]:
    """Return the command that runs a Python program given as text."""
    return [sys.executable, "-c", code, *arguments]


def best(work: Callable[[], object], times: int = 7) -> float:
    """Return the seconds of the fastest of several calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _run_once(command: Sequence[str]) -> Run:
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, *command]
    # Compile first, because installed packages, such as the peers, have bytecode.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(launcher, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    seconds, peak = done.stdout.split()
    return Run(float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024))


# A process inherits the peak of its parent, so the parent must be small.
_LAUNCHER = """
import os, sys, time
null = os.open(os.devnull, os.O_WRONLY)
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                     file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
