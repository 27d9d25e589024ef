"""The tests with the oldest and newest packages: ``python -m tests.versions [NAME...]``.

Builds an environment for each row of `MATRIX` (or those named) whose Python is installed, runs the
tests named there in it, and removes it. Writes the table of the documentation,
``docs/reference/versions.md``; rows that are not named keep their last result there (kept in
``build/versions/results.json``). 1 if any failed, or none ran.

Where pip finds no build of PyTorch for the CPU alone, it brings CUDA's: 3 to 5 GB a row.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.determinism import interpreter

FOLDER = ROOT / "build" / "versions"
PAGE = ROOT / "docs" / "reference" / "versions.md"

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
WITH_EXTRAS = ("tests/plot", "tests/converters/hub", "tests/converters/gguf")
WITH_PEFT = ("tests/converters/test_through_peft.py", "tests/converters/test_rescued.py")
WITH_TORCH = (
    "tests/torch/test_against_peft.py",
    "tests/torch/test_checkpoint.py",
    "tests/torch/test_injection.py",
    "tests/torch/test_merging.py",
    "tests/torch/test_packed.py",
    "tests/torch/test_state_dict.py",
)


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

    @property
    def key(self) -> str:
        return f"{self.name}, {self.python}"


OLDEST = (
    "click==8.2.0",
    "ml_dtypes==0.4.0",
    "msgpack==1.0.5",
    "numpy==1.26.0",
    "rich==13.7.0",
    "threadpoolctl==3.2.0",
)
OLDEST_EXTRAS = (
    "gguf==0.17.0",
    "huggingface_hub==0.34.0",
    "matplotlib==3.8.0",
    "peft==0.13.0",
    "regex==2023.6.3",
    "safetensors==0.4.3",
    "torch==2.5.0",
    "transformers==4.45.0",
)
NEWEST_EXTRAS = ("gguf", "huggingface_hub", "matplotlib", "peft", "torch", "transformers")
MATRIX = (
    Row("oldest base", "3.10", OLDEST, BASE),
    Row("newest base", "3.10", (), BASE),
    Row("newest base", "3.11", (), BASE),
    Row("newest base", "3.12", (), BASE),
    Row("newest base", "3.13", (), BASE),
    Row(
        "oldest of all",
        "3.10",
        (*OLDEST, *OLDEST_EXTRAS),
        (*BASE, *WITH_EXTRAS, *WITH_PEFT, *WITH_TORCH),
    ),
    Row(
        "transformers 4.45",
        "3.11",
        ("torch==2.13.0", "transformers==4.45.2", "peft==0.13.0"),
        (*WITH_PEFT, *WITH_TORCH),
    ),
    Row(
        "transformers 4.51",
        "3.11",
        ("torch==2.13.0", "transformers==4.51.3", "peft==0.15.2"),
        (*WITH_PEFT, *WITH_TORCH),
    ),
    Row(
        "newest of all",
        "3.12",
        NEWEST_EXTRAS,
        (*BASE, *WITH_EXTRAS, *WITH_PEFT, *WITH_TORCH),
    ),
    Row("newest of all", "3.13", NEWEST_EXTRAS, (*WITH_EXTRAS, *WITH_PEFT, *WITH_TORCH)),
)
SHOWN = ("numpy", "msgpack", "click", "torch", "transformers", "peft")
"""The packages whose versions stand in the table."""

_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)")


def tried(row: Row, python: str, number: int) -> dict[str, Any]:
    """What pytest counted in a new environment, and the versions of `SHOWN` there."""
    folder = FOLDER / str(number)
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    inside = folder / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-cache-dir"]
    needed = ["pytest>=8", "pytest-timeout", "hypothesis>=6.100", "mpmath", *row.packages]
    subprocess.run([*pip, *needed, str(ROOT)], check=True)
    done = subprocess.run(
        [inside, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *row.tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    (FOLDER / f"{number}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    counts = {what: int(count) for count, what in _COUNTS.findall(done.stdout[-300:])}
    versions = _versions(inside)
    shutil.rmtree(folder)
    return {"ok": done.returncode == 0, "counts": counts, "versions": versions}


def _versions(python: Path) -> dict[str, str]:
    script = (
        "import json, platform\n"
        "from importlib.metadata import version, PackageNotFoundError\n"
        "found = {'python': platform.python_version()}\n"
        f"for name in {SHOWN}:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    found = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(found.stdout)
    return versions


def page(results: dict[str, dict[str, Any]]) -> str:
    """The table of the documentation, from the results of all rows by their keys."""
    columns = ("python", *SHOWN)
    lines = [
        "# Tested versions",
        "",
        "<!-- Written by `make versions`. -->",
        "",
        "What `make versions` ran: the tests that depend on the packages, in an environment of its "
        "own each.",
        "A test is skipped where a package is too old or absent; pytest names the reason.",
        "",
        f"| | {' | '.join(columns)} | passed | skipped |",
        f"|---|{'---|' * (len(columns) + 2)}",
    ]
    for row in MATRIX:
        result = results.get(row.key)
        if result is None:
            lines.append(f"| {row.name} | {row.python} |{' |' * len(SHOWN)} not run | |")
            continue
        versions = [result["versions"].get(name, "") for name in columns]
        passed = result["counts"].get("passed", 0) if result["ok"] else "**failed**"
        skipped = result["counts"].get("skipped", 0)
        lines.append(f"| {row.name} | {' | '.join(versions)} | {passed} | {skipped} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """See the module's own text."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "results.json"
    wanted = sys.argv[1:]
    results: dict[str, dict[str, Any]] = (
        json.loads(file.read_text("utf-8")) if wanted and file.exists() else {}
    )
    ran = []
    for number, row in enumerate(MATRIX):
        if wanted and row.name not in wanted and row.key not in wanted:
            continue
        python = interpreter(row.python)
        if python is None:
            print(f"{row.key:<24} not installed", flush=True)
            continue
        result = tried(row, python, number)
        ran.append(result["ok"])
        results[row.key] = result
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(line(row, number, result), flush=True)
    PAGE.write_text(page(results), encoding="utf-8")
    return int(not ran or not all(ran))


def line(row: Row, number: int, result: dict[str, Any]) -> str:
    """One row of the table that is printed."""
    verdict = "ok" if result["ok"] else f"FAILED (build/versions/{number}.log)"
    counts = ", ".join(f"{count} {what}" for what, count in result["counts"].items())
    versions = " ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{row.key:<24} {verdict}  {versions}: {counts or 'nothing ran'}"


if __name__ == "__main__":
    sys.exit(main())
