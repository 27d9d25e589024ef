"""Check that all versions of Python, NumPy and msgpack give the same bytes: ``python -m
tests.determinism``.

Builds an environment for each of `MATRIX` whose Python is installed (on the PATH or with pyenv),
runs tests/digests.py in it, and prints a table and the rows of `MATRIX` that were left out. The
exit status is 1 if any two rows differ, if one differs from the golden files, or if the running
Python is not in `MATRIX`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

MATRIX = [
    ("3.10", "numpy==1.26.0", "msgpack==1.0.5", "ml_dtypes==0.5.0"),
    ("3.10", "numpy", "msgpack", "ml_dtypes"),
    ("3.11", "numpy==1.26.4", "msgpack==1.0.5", "ml_dtypes==0.5.0"),
    ("3.11", "numpy==2.0.0", "msgpack==1.0.8", "ml_dtypes"),
    ("3.11", "numpy", "msgpack", "ml_dtypes"),
    ("3.12", "numpy==1.26.4", "msgpack==1.1.0", "ml_dtypes"),
    ("3.12", "numpy", "msgpack", "ml_dtypes"),
    ("3.13", "numpy==2.1.0", "msgpack==1.1.0", "ml_dtypes"),
    ("3.13", "numpy", "msgpack", "ml_dtypes"),
]
"""Version of Python, and requirements for pip. Without a version, the newest is installed."""

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"

FOLDER = ROOT / "build" / "determinism"


def interpreter(version: str) -> str | None:
    """Return a working interpreter of this version of Python."""
    if version == OWN:
        return sys.executable
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *pyenv):
        if (
            candidate
            and not subprocess.run(
                [candidate, "-c", ""], stderr=subprocess.DEVNULL, check=False
            ).returncode
        ):
            return str(candidate)
    return None


def run(*command: object) -> str:
    """Run a command and return its output; its standard error is inherited."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return done.stdout


def environment(python: str, number: int, packages: list[str], wheel: Path) -> Path:
    """Create an environment with these packages and the library, and return its interpreter."""
    folder = FOLDER / f"environment-{number}"
    run(python, "-m", "venv", "--clear", folder)
    inside = folder / "bin" / "python"
    pip = (inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--only-binary", ":all:", *packages, wheel)
    return inside


def main() -> int:
    """See the module's docstring."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*pip, "--wheel-dir", FOLDER, ROOT)
    (wheel,) = FOLDER.glob("vbfmt-*.whl")
    expected = {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (ROOT / "spec" / "golden").glob("*.vblora")
    }
    different = 0
    ran: list[str] = []
    for number, (version, *packages) in enumerate(MATRIX):
        python = interpreter(version)
        if python is None:
            continue
        inside = environment(python, number, packages, wheel)
        found = json.loads(run(inside, ROOT / "tests" / "digests.py"))
        digests, versions = found["digests"], found["versions"]
        assert str(FOLDER) in versions.pop("vbfmt")
        names = [name for name in digests if ":" not in name]
        if not ran:
            print(*(f"{name:>10}" for name in versions), *(f"{name:>15}" for name in names))
        ran.append(version)
        wrong = {
            name for name, digest in digests.items() if expected.setdefault(name, digest) != digest
        }
        different += bool(wrong)
        print(
            *(f"{value:>10}" for value in versions.values()),
            *(f"{digests[name][:15]:>15}" for name in names),
            f"differ: {', '.join(sorted(wrong))}" if wrong else "factors too",
            flush=True,
        )
    print(summary(ran))
    return int(different > 0 or OWN not in ran)


def summary(ran: list[str]) -> str:
    """Return a summary: how many rows of `MATRIX` ran, on which Pythons, and which Pythons are not
    installed."""
    missing = sorted({version for version, *_ in MATRIX} - set(ran))
    text = f"{len(ran)} of {len(MATRIX)} environments, on Python {', '.join(sorted(set(ran)))}"
    return f"{text}; not installed: {', '.join(missing) or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
