"""Fault injection: the Nth call of the library to the operating system fails."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from vbfmt._files import staging

CALLS = {
    "open": (os, "open"),
    "write": (os, "write"),  # direct writes; others use the stream below
    "fsync": (os, "fsync"),
    "link": (os, "link"),
    "replace": (os, "replace"),
    "rename": (os, "rename"),
    "renameat2": (staging, "exchange"),  # called by ctypes; returns success
    "access": (os, "access"),
    "unlink": (os, "unlink"),
    "mkdir": (os, "mkdir"),
    "rmdir": (os, "rmdir"),
    "stat": (os, "stat"),
    "lstat": (os, "lstat"),  # `os.path.realpath` and `lexists` too
    "scandir": (os, "scandir"),  # `shutil.rmtree` too
    "fstat": (os, "fstat"),
    "listdir": (os, "listdir"),
    "dup": (os, "dup"),
    "chmod": (os, "chmod"),
    "fchmod": (os, "fchmod"),
    "close": (os, "close"),
    "mmap": (mmap, "mmap"),
}
"""The calls that can fail, by the name that the library uses."""

if sys.platform != "win32":
    import fcntl

    CALLS["flock"] = (fcntl, "flock")


@dataclass
class Faults:
    """Counts calls and fails some.

    Attributes:
        first: the number of the call that fails, from 1.
        lasting: whether every later one fails as well, as on a disk that has died.
        full: errno with which a partial write through the page cache fails: no space, no quota, or
            an error of the disk.
        made: names of all calls so far, in order.
        failed: number of calls that failed.
    """

    first: int
    lasting: bool = False
    full: int = errno.ENOSPC
    made: list[str] = field(default_factory=list)
    failed: int = 0

    def __call__(self, name: str) -> bool:
        """Record a call, and return whether it must fail."""
        self.made.append(name)
        due = len(self.made) == self.first or (self.lasting and len(self.made) > self.first)
        self.failed += due
        return due


@contextlib.contextmanager
def injected(faults: Faults) -> Iterator[Faults]:
    """Within the block, calls fail as `faults` says."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (module, attribute) in CALLS.items():
            patch.setattr(module, attribute, _failing(name, getattr(module, attribute), faults))
        patch.setattr(os, "fdopen", lambda file, mode: _stream(file, mode, faults))
        yield faults


def _failing(name: str, real: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not faults(name):
            return real(*args, **kwargs)
        if name in ("renameat2", "access"):
            return False
        if name == "close":
            real(*args, **kwargs)  # on Linux, close() closes even on errors
        raise OSError(errno.EIO, "Input/output error")

    return call


def _stream(file: int, mode: str, faults: Faults) -> io.BufferedIOBase:
    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            if faults("write"):
                super().write(memoryview(data)[: len(data) // 2])  # half is written
                raise OSError(faults.full, os.strerror(faults.full))
            return super().write(data)

        def readinto(self, buffer: Any) -> int | None:
            if faults("read"):
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    raw = Raw(file, mode)
    return io.BufferedWriter(raw) if "w" in mode else io.BufferedReader(raw)
