"""Measure the largest cost of commands: ``python -m tests.limits [WORD]``.

Runs each command on small hostile inputs, and on some at the documented limits, and prints CPU
time, memory and their bounds. The exit status is 1 if a bound is exceeded. WORD selects the cases
whose name or command line contains it.

Interpreter and imports are not counted: every command runs in a fork of a process that has them. A
command that exceeds a bound runs twice more, and the smallest time counts, because other work on
the machine only increases CPU time. Files are in memory if the system has a folder for this, unless
TMPDIR names another one, so that the results do not depend on the disk.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.commands import _called
from tests.limits.cases import AT_THE_LIMITS, CASES, Case

MB = 1_000_000
SECONDS, MEMORY = 1.0, 64 * MB
PER_BYTE = 8
TIMES = 3
AT_LIMIT_SECONDS, AT_LIMIT_MEMORY = 60.0, 1000 * MB


class Cost(NamedTuple):
    """The cost of one command: seconds of CPU time, bytes of memory, and the exit status."""

    seconds: float
    memory: int
    status: int


def measured(line: str, folder: Path) -> Cost:
    """Run a command line in a folder, in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 3
        try:
            _run(line, folder, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        words = pipe.read().split()
    _, _, used = os.wait4(child, 0)
    if len(words) == 3:
        return Cost(float(words[0]), int(words[1]), int(words[2]))
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, -1)  # a limit ended it


def _run(line: str, folder: Path, pipe: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(AT_LIMIT_SECONDS) + 30,) * 2)
    os.chdir(folder)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, begin = _status("VmRSS"), time.process_time()
    code, _, err = _called(line.split())
    taken = time.process_time() - begin
    if "Traceback" in err:
        code = -1
    os.write(pipe, f"{taken} {_status('VmHWM') - before} {code}".encode())


def _status(key: str) -> int:
    """Return a size of this process in bytes, as the system reports it."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024


def rows(cases: dict[str, Case], word: str, seconds: float) -> Iterator[tuple[str, str, int, Cost]]:
    """Yield case, command line, bytes of the input and cost, when they are measured."""
    for name, (make, lines) in cases.items():
        chosen = [line for line in lines if word in name or word in line]
        if not chosen:
            continue
        with _folder() as folder:
            make(Path(folder))
            size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
            for line in chosen:
                yield name, line, size, _least(make, line, measured(line, Path(folder)), seconds)


def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = "/dev/shm"
    chosen = "TMPDIR" in os.environ or not os.path.isdir(memory)
    return tempfile.TemporaryDirectory(dir=None if chosen else memory)


def _least(make: Callable[[Path], None], line: str, first: Cost, seconds: float) -> Cost:
    """Return the smallest time of up to `TIMES` runs, until one takes at most `seconds`, and the
    worst memory and status."""
    costs = [first]
    while len(costs) < TIMES and min(costs).seconds > seconds:
        with _folder() as folder:
            make(Path(folder))
            costs.append(measured(line, Path(folder)))
    failed = next((cost.status for cost in costs if cost.status not in (0, 1, 2)), first.status)
    return Cost(min(costs).seconds, max(cost.memory for cost in costs), failed)


def import_everything() -> None:
    """Import the commands and everything that they import lazily."""
    from importlib import import_module

    names = ["numpy", "regex", "gguf", "matplotlib.figure", "torch", "transformers", "peft"]
    names += [
        f"vbfmt.cli.{n}" for n in ["pack", "unpack", "expand", "merge", "verify", "inspect", "plot"]
    ]
    names += ["transformers.models.llama.modeling_llama", "peft.tuners.unilora"]
    names += [f"vbfmt.cli.{n}" for n in ["estimate", "diff", "bank", "store"]]
    names += ["vbfmt.plot", "vbfmt.converters.peft.skeleton", "vbfmt.converters.gguf.base"]
    for name in names:
        try:
            import_module(name)
        except ImportError:
            print(f"without {name}", file=sys.stderr)


def main() -> int:
    """See the module's own text."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    import_everything()
    gc.freeze()  # do not measure the collection of imported modules
    beyond = 0
    for cases, seconds, memory in (
        (CASES, SECONDS, MEMORY),
        (AT_THE_LIMITS, AT_LIMIT_SECONDS, AT_LIMIT_MEMORY),
    ):
        print(f"{'seconds':>8} {'MB':>6} {'bound':>6} status  input and command")
        for name, line, size, cost in rows(cases, word, seconds):
            most = memory + (PER_BYTE * size if cases is CASES else 0)
            bad = cost.seconds > seconds or cost.memory > most or cost.status not in (0, 1, 2)
            beyond += bad
            print(
                f"{cost.seconds:8.2f} {cost.memory / MB:6.0f} {most / MB:6.0f} {cost.status:6}  "
                f"{name} ({size / MB:.2f} MB): {line}{'  BEYOND' if bad else ''}",
                flush=True,
            )
    print(f"{beyond} beyond {SECONDS} s and 64 MB + 8 bytes a byte, or 60 s and 1 GB at the limits")
    return int(beyond > 0)


if __name__ == "__main__":
    sys.exit(main())
