"""The README: its length, its code, its links in a checkout, and its links on PyPI."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vbfmt import __version__

TEXT = (ROOT / "README.md").read_text("utf-8")
LINK = re.compile(r"(?<=\]\()[^)]*(?=\))")
LINKS = LINK.findall(TEXT)
RELATIVE = [link for link in LINKS if not link.startswith("https://")]
REPOSITORY = "https://github.com/vbfmt/vbfmt"


def test_it_is_short():
    """About 900 words, without the code and the output."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    assert len(prose.split()) < 1000


def test_each_python_block_runs_alone():
    """Readers copy the code of single sections."""
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S):
        for module in ("torch", "vbfmt"):
            used = re.search(rf"(?<!from )\b{module}\.(?!torch import)\w", block)
            assert not used or f"import {module}\n" in block, block


def test_every_link_into_the_repository_has_a_target():
    assert len(RELATIVE) > 10
    for link in RELATIVE:
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_pypi_gets_links_that_work_there(tmp_path):
    """PyPI shows the README alone, so relative links would be broken there."""
    pytest.importorskip("hatch_fancy_pypi_readme")
    code = "import sys, hatchling.build as b; b.prepare_metadata_for_build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    _, _, shown = metadata.read_text("utf-8").partition("\n\n")
    assert len(LINK.findall(shown)) == len(LINKS)
    assert all(link.startswith("https://") for link in LINK.findall(shown))
    for link in RELATIVE:
        kind = "raw" if link.endswith(".png") else "blob"
        assert f"]({REPOSITORY}/{kind}/main/{link})" in shown
    assert LINK.sub("", shown).strip() == LINK.sub("", TEXT).strip()


def test_links_point_to_the_projects_source_url():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'\nSource = "{REPOSITORY}"\n' in project


def test_urls_changelog_and_contributing_guide_are_current():
    project = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.urls]")[2]
    for name in ("Source", "Issues", "Changelog", "Specification"):
        assert f'\n{name} = "https://' in project
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "make test" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_what_was_not_tested_is_stated():
    support = (ROOT / "docs" / "reference" / "support.md").read_text("utf-8")
    assert "Windows and macOS" in support
    assert "was not run there" in support
