"""The tests with the oldest and newest packages: ``python -m tests.versions [NAME...]``.

Builds an environment for each of `MATRIX` whose Python is installed, runs the tests named there in
it, and prints a table. 1 if any failed, or none ran. PyTorch is left out where its wheel would
bring CUDA (gigabytes): where pip has no CPU build for that Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.determinism import interpreter

FOLDER = ROOT / "build" / "versions"

BASE = (
    "tests/format",
    "tests/mathematics",
    "tests/files",
    "tests/analysis",
    "tests/cli/test_cli.py",
    "tests/cli/test_inspect.py",
    "tests/cli/test_messages.py",
    "tests/test_adapter.py",
    "tests/test_packed.py",
    "tests/converters/test_peft.py",
)
WITH_PEFT = ("tests/converters/test_through_peft.py", "tests/converters/test_rescued.py")
WITH_TORCH = ("tests/torch/test_against_peft.py", "tests/torch/test_packed.py")


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        name: for the table.
        python: its version.
        packages: what is asked of pip; without a version the newest is taken.
        tests: what is run there.
    """

    name: str
    python: str
    packages: tuple[str, ...]
    tests: tuple[str, ...]


OLDEST = ("numpy==1.26.0", "msgpack==1.0.5", "click==8.2.0", "ml_dtypes==0.4.0", "rich==13.7.0")
MATRIX = (
    Row("oldest base", "3.10", OLDEST, BASE),
    Row("newest base", "3.10", (), BASE),
    Row("newest base", "3.11", (), BASE),
    Row("newest base", "3.12", (), BASE),
    Row("newest base", "3.13", (), BASE),
    Row(
        "oldest PEFT",
        "3.11",
        ("torch==2.13.0", "numpy<2.3", "transformers==4.45.2", "peft==0.13.0"),
        WITH_PEFT,
    ),
    Row(
        "transformers 4.51",
        "3.11",
        ("torch==2.13.0", "transformers==4.51.3", "peft==0.15.2"),
        (*WITH_PEFT, *WITH_TORCH),
    ),
    Row(
        "newest PEFT",
        "3.11",
        ("torch==2.13.0", "transformers", "peft"),
        (*WITH_PEFT, *WITH_TORCH),
    ),
)
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)")


def tried(row: Row, python: str, number: int) -> tuple[bool, str]:
    """Whether the tests passed in a new environment, and what pytest counted."""
    folder = FOLDER / str(number)
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    inside = folder / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    needed = ["pytest>=8", "pytest-timeout", "hypothesis>=6.100", "mpmath", *row.packages]
    subprocess.run([*pip, *needed, str(ROOT)], check=True)
    done = subprocess.run(
        [inside, "-m", "pytest", "-p", "no:cacheprovider", *row.tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    (FOLDER / f"{number}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    counts = ", ".join(" ".join(found) for found in _COUNTS.findall(done.stdout[-300:]))
    versions = _versions(inside)
    return done.returncode == 0, f"{versions}: {counts or 'nothing ran'}"


def _versions(python: Path) -> str:
    names = ("numpy", "msgpack", "click", "torch", "transformers", "peft")
    script = (
        "from importlib.metadata import version, PackageNotFoundError\n"
        f"for name in {names}:\n"
        "    try: print(name, version(name), end=' ')\n"
        "    except PackageNotFoundError: pass\n"
    )
    return subprocess.run([python, "-c", script], capture_output=True, text=True).stdout.strip()


def main() -> int:
    """See the module's own text."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    wanted = sys.argv[1:]
    results = []
    for number, row in enumerate(MATRIX):
        python = interpreter(row.python)
        if wanted and row.name not in wanted:
            continue
        if python is None:
            print(f"{row.name:<18} {row.python:<5} not installed", flush=True)
            continue
        passed, text = tried(row, python, number)
        results.append(passed)
        verdict = "ok" if passed else f"FAILED (build/versions/{number}.log)"
        print(f"{row.name:<18} {row.python:<5} {verdict}  {text}", flush=True)
    return int(not results or not all(results))


if __name__ == "__main__":
    sys.exit(main())
