"""A run over many inputs: the outcome, time and memory of each."""

from __future__ import annotations

import collections
import os
import resource
import sys
import time
import warnings
from pathlib import Path

from tests.fuzz.targets import Target
from vbfmt.errors import VbfmtWarning

SLOWEST = 1.0
"""Seconds of CPU time that one input may take. The fastest of up to three runs counts, because
other work on the machine makes a run only slower."""

LARGEST = 64 << 20
"""Bytes that one input may add to the process's peak memory. Beyond a target's `address_space`,
allocations fail (RLIMIT_AS)."""

_REPORT_EVERY = 60.0
"""Seconds between two reports."""
_UNLIMITED = resource.getrlimit(resource.RLIMIT_AS)


class TooSlowError(AssertionError):
    """An input took more than `SLOWEST`."""


class TooLargeError(AssertionError):
    """An input took more than `LARGEST`."""


class Run:
    """Runs a target on inputs. Any exception is a bug of the library: an error of another class, a
    warning, too much memory, or too much time. The input is then saved."""

    def __init__(self, name: str, target: Target, folder: Path) -> None:
        self.name, self.target, self.folder = name, target, folder
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.executions, self.slowest, self.largest = 0, 0.0, 0
        for data in target.seeds():  # import lazily loaded modules without limits
            target.run(data)
        self.start = self.reported = time.monotonic()

    def __call__(self, data: bytes) -> None:
        peak = _peak()
        taken, outcome = self._timed(data)
        for _ in range(2):
            if taken > SLOWEST:
                taken = min(taken, self._timed(data)[0])
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, taken)
        grown = _peak() - peak
        self.largest = max(self.largest, grown)
        if taken > SLOWEST:
            self._keep(data)
            raise TooSlowError(f"{taken:.2f} s")
        if grown > LARGEST:
            self._keep(data)
            raise TooLargeError(f"{grown >> 20} MiB")
        self.executions += 1
        if time.monotonic() - self.reported > _REPORT_EVERY:
            print(self.report(), flush=True)
            self.reported = time.monotonic()

    def _timed(self, data: bytes) -> tuple[float, str]:
        """Return the seconds of CPU time, and the outcome."""
        begin = time.thread_time()
        _limit(self.target.address_space)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", VbfmtWarning)
                outcome = self.target.run(data)
        except BaseException:
            _limit(None)
            self._keep(data)
            raise
        _limit(None)
        return time.thread_time() - begin, outcome

    def report(self) -> str:
        """Return one line: the number of inputs, the rate, the slowest input, the one with the
            largest growth of
        peak memory, and the outcomes."""
        rate = self.executions / (time.monotonic() - self.start)
        return (
            f"{self.name}: {self.executions} executions, {rate:.0f}/s, "
            f"slowest {self.slowest:.3f} s, largest {self.largest / 2**20:.1f} MiB, "
            f"{dict(self.outcomes.most_common())}"
        )

    def _keep(self, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{self.executions}.crash"
        path.write_bytes(data)
        print(f"{path}: {len(data)} bytes", flush=True)


def _limit(more: int | None) -> None:
    """Limit the growth of the address space to this number of bytes, or remove the limit."""
    soft, hard = _UNLIMITED
    if more is not None and sys.platform == "linux":  # other systems do not report its current size
        with open("/proc/self/statm", "rb", buffering=0) as file:
            soft = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
