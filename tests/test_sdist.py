"""An sdist contains the files that its tests need; other tests are skipped there."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
INCLUDED = PROJECT.partition("[tool.hatch.build.targets.sdist]")[2].partition("exclude")[0]
HELD = [*re.findall(r'^ +"([^"]+)"', INCLUDED, re.M), "pyproject.toml", "README.md", "build"]
"""Files that the project lists, that the build backend adds, and that tests create."""

NAMED = re.compile(r'\bROOT / "([^"]+)"')
FILES = sorted(
    path
    for folder in ("tests", "spec")
    for path in (ROOT / folder).rglob("*.py")
    if "node_modules" not in path.parts and NAMED.search(path.read_text(encoding="utf-8"))
)


def test_what_is_listed_exists():
    assert len(HELD) > 10
    assert all((ROOT / name).exists() for name in HELD if name != "build")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_tests_name_are_in_an_sdist(path):
    """Earlier, some tests could not run from an sdist, because files that they read were
    missing."""
    text = path.read_text(encoding="utf-8")
    beyond = [name for name in NAMED.findall(text) if name not in HELD]
    assert not beyond or "skipif(not" in text, beyond
