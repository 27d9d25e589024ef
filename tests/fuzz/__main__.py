"""Long fuzzing runs: ``python -m tests.fuzz TARGET [RUNS] [FOLDER]``.

The fuzzer is guided by coverage if atheris (libFuzzer) is installed, and otherwise random. An input
that fails ends the run and is written to FOLDER (build/fuzz); when the bug is fixed, add it to
`crashers/`. Inputs that reached new code are in FOLDER/corpus-TARGET.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.run import Run


def by_chance(run: Run, runs: int, rng: random.Random) -> None:
    """Damage the seeds, and some of the damaged inputs again, without guidance."""
    pool = run.target.seeds()
    for _ in range(runs):
        data = run.target.damaged(rng.choice(pool), rng)
        run(data)
        if rng.random() < 0.01:
            pool.append(data)


def by_coverage(atheris: Any, run: Run, runs: int) -> None:
    """Let libFuzzer choose what to change, by the branches that it reaches. Does not return."""
    corpus = run.folder / f"corpus-{run.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = run.target.seeds()
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:03}").write_bytes(seed)

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        def plain(chunk: bytes) -> bytes:
            return atheris.Mutate(chunk, len(chunk) + 64) if chunk else b"\0"

        rng = random.Random(seed)
        # Most inputs of libFuzzer fail early, so every second time start from a valid seed.
        start = rng.choice(seeds) if rng.random() < 0.5 else bytes(data)
        return run.target.damaged(start, rng, plain)[:longest]

    def one_input(data: bytes) -> None:
        run(bytes(data))
        if run.executions >= runs:
            print(run.report(), flush=True)

    # `Run` limits the CPU time. Wall-clock time can be minutes on a busy machine.
    patience = ["-timeout=3600", "-report_slow_units=3600"]
    options = [f"-runs={runs}", "-max_len=65536", "-verbosity=0", *patience]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    """See the module's docstring."""
    name, runs, folder = (*sys.argv[1:], *(None, 100_000, "build/fuzz")[len(sys.argv) - 1 :])
    try:
        import atheris
    except ImportError:
        atheris = None
        print("atheris is not installed: no guidance by coverage")
    else:
        atheris.instrument_imports(include=["vbfmt"]).__enter__()
    from tests.fuzz.run import Run
    from tests.fuzz.targets import TARGETS

    run = Run(name, TARGETS[name], Path(folder))
    if atheris is None:
        by_chance(run, int(runs), random.Random())
        print(run.report())
    else:
        by_coverage(atheris, run, int(runs))


if __name__ == "__main__":
    main()
