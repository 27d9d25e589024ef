"""The README: its length, its code, and its links, which also have to work on PyPI."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from vbfmt import __version__

TEXT = (ROOT / "README.md").read_text("utf-8")
LINKS = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", TEXT)
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


def test_every_link_works_on_pypi_and_has_a_target():
    """PyPI shows the README alone, so relative links would be broken there."""
    inside = 0
    for image, link in LINKS:
        assert link.startswith("https://"), link
        if link.startswith(f"{REPOSITORY}/"):
            inside += 1
            start = f"{REPOSITORY}/{'raw' if image else 'blob'}/main/"
            assert link.startswith(start), link
            assert (ROOT / link.removeprefix(start).partition("#")[0]).exists(), link
    assert inside > 10


def test_links_point_to_the_projects_source_url():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'\nSource = "{REPOSITORY}"\n' in project
    assert '\nreadme = "README.md"' in project


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
