"""Run the benchmarks, one table for each subject: ``python -m tests.bench [SUBJECT ...]``.

Options of a subject may follow its name, if it is the only one::

    python -m tests.bench training --device cuda
"""

from __future__ import annotations

import sys
from importlib import import_module

from tests.bench.table import print_table

SUBJECTS = (
    "start",
    "mathematics",
    "packing",
    "plot",
    "merge",
    "training",
    "store",
    "jobs",
    "serving",
)


def main(subjects: list[str]) -> int:
    """Run the benchmarks and return the exit status: 1 if a bound is missed."""
    if len(subjects) > 1 and subjects[1].startswith("-"):
        subject, *options = subjects
        run: int = import_module(f"tests.bench.{subject}").main(options)
        return run
    missed = 0
    for subject in subjects or SUBJECTS:
        print(f"\n### {subject}\n", flush=True)
        missed += not print_table(import_module(f"tests.bench.{subject}").rows())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
