"""Check that the tests that SECURITY.md names fail if its claims are false.

``python -m tests.claims [WORD]`` breaks a copy of the code, one change at a time, and runs the test
of the claim.

The exit status is 1 if a test passes all the same, if it cannot be run here, or if a line to break
is not found. WORD selects tests by name. A run of all takes a quarter of an hour on an idle core.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.claims.breaks import Break, breaks

ROOT = Path(__file__).parents[2]
_COPIED = ("pyproject.toml", "vbfmt", "converters", "spec", "tests", "docs", "SECURITY.md")


def main() -> int:
    """Run the command (see the module's docstring)."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in _COPIED:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy / part)
        chosen = [each for each in breaks() if word in each.test]
        if _run(copy, *(each.test for each in chosen)) != 0:
            print("some of these tests fail before anything is broken")
            return 1
        for each in chosen:
            found = outcome(each, copy)
            wrong += found != "fails"
            print(f"{found:>10}  tests/{each.test}  {each.file}: {each.old}", flush=True)
    print(f"{wrong} of {len(chosen)} tests did not fail although their claim was false")
    return int(wrong > 0)


def outcome(broken: Break, copy: Path) -> str:
    """Return ``fails`` if the test detects the change, ``passes`` if not, or ``not found``."""
    path = copy / broken.file
    text = path.read_text()
    if broken.old not in text:
        return "not found"
    path.write_text(text.replace(broken.old, broken.new, 1))
    try:
        status = _run(copy, broken.test)
    except subprocess.TimeoutExpired:
        return "fails"  # it does not end, because a limit was removed
    finally:
        path.write_text(text)
    if status < 0:
        return "fails"  # ended by a signal, as by SIGBUS
    return {0: "passes", 1: "fails"}.get(status, f"status {status}")


def _run(copy: Path, *tests: str) -> int:
    """Run a test and return pytest's exit status."""
    named = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-qx", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *named], cwd=copy, capture_output=True, timeout=900, check=False
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
