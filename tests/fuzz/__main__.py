"""Long fuzzing runs: ``python -m tests.fuzz TARGET [RUNS] [FOLDER]``.

Guided by coverage with atheris (libFuzzer) where it is installed; else by chance alone. Inputs
that break something, take more than a second, or make the process grow by more than 64 MiB are
written to FOLDER (build/fuzz); those that were faults of the library belong into `crashers/`.
"""

from __future__ import annotations

import collections
import random
import resource
import sys
import time
from pathlib import Path

SLOWEST, LARGEST = 1.0, 64 << 20
REPORT_EVERY = 50_000


class Run:
    """Counts what became of the inputs and watches time and memory of each."""

    def __init__(self, name: str, target, folder: Path) -> None:
        self.name, self.target, self.folder = name, target, folder
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.executions, self.slowest, self.largest = 0, 0.0, 0
        self.peak = _peak()
        self.start = time.monotonic()

    def __call__(self, data: bytes) -> None:
        begin = time.thread_time()
        try:
            self.outcomes[self.target.run(bytes(data))] += 1
        except BaseException:
            self._keep(data, "crash")
            raise
        taken, peak = time.thread_time() - begin, _peak()
        self.slowest = max(self.slowest, taken)
        if self.executions:  # the first one imports
            self.largest = max(self.largest, peak - self.peak)
            if taken > SLOWEST:
                self._keep(data, "slow")
            if peak - self.peak > LARGEST:
                self._keep(data, "large")
        self.peak = peak
        self.executions += 1
        if self.executions % REPORT_EVERY == 0:
            self.report()

    def report(self) -> None:
        """One line: how many, how fast, what came out, the slowest and the largest call."""
        rate = self.executions / (time.monotonic() - self.start)
        print(
            f"{self.name}: {self.executions} executions, {rate:.0f}/s, "
            f"slowest {self.slowest:.3f} s, largest growth {self.largest / 2**20:.1f} MiB, "
            f"{dict(self.outcomes.most_common())}",
            flush=True,
        )

    def _keep(self, data: bytes, why: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{why}-{self.executions}"
        path.write_bytes(data)
        print(f"{path}: {len(data)} bytes", flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def by_chance(run: Run, runs: int) -> None:
    """Mutate the seeds, and mutants of them, without guidance."""
    rng = random.Random(time.time_ns())
    pool = run.target.seeds()
    for _ in range(runs):
        data = run.target.mutate(rng.choice(pool), rng)
        run(data)
        if rng.random() < 0.01:
            pool.append(data)
    run.report()


def by_coverage(atheris, run: Run, runs: int) -> None:
    """Let libFuzzer choose what to mutate, by the branches that it reaches."""
    corpus = run.folder / f"corpus-{run.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(run.target.seeds()):
        (corpus / f"seed-{number:03}").write_bytes(seed)

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        def plain(chunk: bytes) -> bytes:
            return atheris.Mutate(chunk, len(chunk) + 64) if chunk else b"\0"

        return run.target.mutate(bytes(data), random.Random(seed), plain)[:longest]

    def one_input(data: bytes) -> None:
        run(data)
        if run.executions >= runs:
            run.report()

    options = [f"-runs={runs}", "-max_len=65536", "-print_final_stats=1", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    """See the module's own text."""
    name, runs, folder = (*sys.argv[1:], *(None, 100_000, "build/fuzz")[len(sys.argv) - 1 :])
    try:
        import atheris
    except ImportError:
        from tests.fuzz.targets import TARGETS

        print("atheris is not installed: no guidance by coverage")
        by_chance(Run(name, TARGETS[name], Path(folder)), int(runs))
        return
    with atheris.instrument_imports(include=["vbfmt"]):
        from tests.fuzz.targets import TARGETS
    by_coverage(atheris, Run(name, TARGETS[name], Path(folder)), int(runs))


if __name__ == "__main__":
    main()
