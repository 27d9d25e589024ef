"""An sdist contains the files that its tests need; other tests are skipped there."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from tests.conftest import ROOT

MANIFEST = ROOT / "MANIFEST.in"
HELD = ["vbfmt", "converters", "pyproject.toml", "setup.py", "MANIFEST.in", "build"]
for line in MANIFEST.read_text().splitlines() if MANIFEST.exists() else ():
    if line.startswith(("graft", "include")):
        HELD += line.split()[1:]
"""What setuptools adds by itself, what the manifest adds, and what tests make."""

NAMED = re.compile(r'\bROOT / "([^"]+)"')
FILES = sorted(
    path
    for folder in ("tests", "spec")
    for path in (ROOT / folder).rglob("*.py")
    if "node_modules" not in path.parts and NAMED.search(path.read_text(encoding="utf-8"))
)


pytestmark = pytest.mark.skipif(not MANIFEST.exists(), reason="not a whole source tree")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_tests_name_are_in_an_sdist(path):
    """Some tests could not run from an sdist, because files that they read were left out."""
    text = path.read_text(encoding="utf-8")
    beyond = [name for name in NAMED.findall(text) if not any(fnmatch(name, h) for h in HELD)]
    assert not beyond or "skipif(not" in text, beyond
