"""The web page that opens a packed file, in a browser with files of the corpus."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from tests.plot.test_html import browser as browser

READER = ROOT / "spec" / "javascript"
CORPUS = ROOT / "spec" / "corpus"
VERDICTS = json.loads((CORPUS / "verdicts.json").read_text(encoding="utf-8"))
BANKS = sorted(CORPUS.rglob("*.bank"))
FEW_VALID = sorted(VERDICTS["valid"])[::8]
FEW_INVALID = sorted(VERDICTS["invalid"])[::12]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Build the page and return its address."""
    node = shutil.which("node")
    if node is None or not (READER / "node_modules" / "esbuild").is_dir():
        pytest.skip("the page's packages are not installed: make second-reader")
    output = tmp_path_factory.mktemp("page") / "open.html"
    for command in (["build.js"], ["page/build.js", str(output)]):
        subprocess.run([node, *command], cwd=READER, check=True)
    return output.as_uri()


@pytest.fixture
def opened(browser, page):
    """Return a function from files to the text that the page shows for them."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def run(*files):
        browser.get(page)
        browser.get_log("browser")
        browser.find_element(By.ID, "file").send_keys("\n".join(map(str, files)))
        answers = browser.find_element(By.ID, "answers")
        WebDriverWait(browser, 20).until(lambda _: answers.text and "Reading" not in answers.text)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        return answers.text

    return run


@pytest.mark.parametrize("name", FEW_VALID)
def test_valid_files_are_shown_with_their_digest(opened, name):
    text = opened(CORPUS / "valid" / f"{name}.vblora", *BANKS)
    assert "Every digest and every rule holds." in text
    assert VERDICTS["valid"][name]["digest"] in text


@pytest.mark.parametrize("name", FEW_INVALID)
def test_invalid_files_are_refused_by_kind_and_part(opened, name):
    text = opened(CORPUS / "invalid" / f"{name}.vblora", *BANKS)
    assert f"FAILED: {VERDICTS['invalid'][name]['kind']}: " in text
    assert "holds" not in text


def test_the_page_loads_nothing_external(browser, page):
    browser.get(page)
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        each["params"]["request"]["url"]
        for each in requests
        if each["method"] == "Network.requestWillBeSent"
    }
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
