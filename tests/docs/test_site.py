"""The site of ``make docs`` builds without warnings, and its pages open in a browser."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cli.test_help import EVERY
from tests.conftest import ROOT
from tests.plot.test_html import browser as browser
from tests.plot.test_html import requests_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return every page of the site, built in strict mode: a broken link or a warning is an
    error."""
    pytest.importorskip("mkdocs", reason="run `make docs` first: it installs MkDocs")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "build/installed"], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True)
    return sorted(set(folder.rglob("*.html")) - {folder / "404.html"})  # has absolute links


def test_the_reference_pages_contain_the_docstrings(pages):
    pytest.importorskip("torch")
    import vbfmt.torch

    text = {page.parent.name: page.read_text("utf-8") for page in pages}
    for words in EVERY:
        assert f'id="{"-".join(("vbfmt", *words))}"' in text["commands"]
    pages_of_names = text["python"] + text["converters"] + text["errors"]
    documented = set(re.findall(r'id="(vbfmt[\w.]+)"', pages_of_names))
    missing = {
        name
        for name in set(vbfmt.__all__) - {"__version__"}
        if not {f"vbfmt.{name}", f"{getattr(vbfmt, name).__module__}.{name}"} & documented
    }
    assert missing == set()
    assert {"vbfmt.store.Store.add", "vbfmt.banks.split"} <= documented
    trained = set(re.findall(r'id="vbfmt\.torch(?:\.\w+)*\.(\w+)"', text["torch"]))
    assert set(vbfmt.torch.__all__) - trained == set()


def test_every_page_opens_without_errors_or_requests(browser, pages):
    """Pages are opened as files, where the search, which needs a server, is not used."""
    assert len(pages) > 20
    browser.get_log("browser")
    requests_of(browser)
    for page in pages:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.querySelector('h1') !== null"), page
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    elsewhere = {url for url in requests_of(browser) if not url.startswith(("file:", "data:"))}
    assert elsewhere == set()
