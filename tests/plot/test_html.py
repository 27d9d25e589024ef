"""The HTML page: one file, safe, and interactive in a browser."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.plot.conftest import HOSTILE, made
from vbfmt.plot import FIGURES, Scene, write

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")


class Elements(HTMLParser):
    """Collects the names of elements and the addresses in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.update(name for name, _ in attrs)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def page_of(adapter, tmp_path: Path, name: str = "x", **settings) -> Path:
    path = tmp_path / "page.html"
    write(Scene(adapter, name), path, **settings)
    return path


@pytest.fixture
def hostile():
    return made(names=(f"layers.0.{HOSTILE}", f"layers.1.{HOSTILE}"), base_model=HOSTILE)


def parsed(path: Path) -> Elements:
    elements = Elements()
    elements.feed(path.read_text("utf-8"))
    return elements


def test_all_figures_are_on_the_page_and_nothing_is_external(trained, tmp_path):
    found = parsed(page_of(trained, tmp_path))
    assert [name for name in found.ids if name in FIGURES] == list(FIGURES)
    assert all(re.match(r"#|data:(image/png;base64)?,", address) for address in found.addresses)


def test_ids_are_unique(trained, tmp_path):
    ids = parsed(page_of(trained, tmp_path)).ids
    text = (tmp_path / "page.html").read_text("utf-8")
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {one or other for one, other in referred} <= set(ids)


def test_names_from_files_stay_text(hostile, tmp_path):
    plain = parsed(page_of(made(names=("layers.0.q", "layers.1.q")), tmp_path))
    (tmp_path / "page.html").unlink()
    found = parsed(page_of(hostile, tmp_path, name=f"{HOSTILE}.vblora"))
    assert found.names.count("script") == plain.names.count("script") == 2
    assert "img" not in found.names
    assert "b" not in found.names
    assert not any(name.startswith("on") for name in found.attributes)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_scripts_data_is_the_drawn_data(trained, tmp_path):
    text = page_of(trained, tmp_path, figures=["norms"]).read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    (hover,) = json.loads(found.group(1))["norms"]
    scene = Scene(trained, "x")
    assert hover["columns"]["vector"] == scene.by_norm.tolist()
    assert hover["columns"]["norm"] == pytest.approx(scene.norms[scene.by_norm].tolist(), rel=1e-3)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def hover_text(browser, figure: str, x: float, y: float) -> str:
    """Return the text that the page shows for this position of the pointer, in fractions of the
    picture."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    picture = browser.find_element(By.CSS_SELECTOR, f"#{figure} .picture")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    size = picture.size
    dx, dy = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
    ActionChains(browser).move_to_element_with_offset(picture, dx, dy).perform()
    return browser.find_element(By.ID, "value").text


def requests_of(browser) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("kind", ["trained", "hostile"])
def test_in_a_browser_values_are_shown_without_errors_or_requests(browser, kind, request, tmp_path):
    adapter = request.getfixturevalue(kind)
    path = page_of(adapter, tmp_path, name=f"{HOSTILE}.vblora")
    browser.get_log("browser")
    requests_of(browser)
    browser.get(path.as_uri())
    texts = {name: hover_text(browser, name, 0.5, 0.55) for name in FIGURES}
    errors = browser.get_log("browser")
    assert errors == []
    asked = {url for url in requests_of(browser) if not url.startswith("data:")}
    assert asked == {path.as_uri()}
    assert browser.execute_script("return typeof pwned") == "undefined"
    if kind == "trained":
        assert re.fullmatch(r"\d+ vectors are selected \d+ times", texts["usage"])
        assert re.fullmatch(r"vector \d+: norm 0\.\d+, selected \d+ times", texts["norms"])
        assert re.fullmatch(r"layers \d–\d: vector \d+ has weight [\d.]+", texts["depth"])
        assert re.fullmatch(
            r"[\w.]+ [AB] \(\d+\): -?[\d.]+ σ from an even share to vector \d+", texts["kinds"]
        )
        assert re.fullmatch(
            r"sub-vector \d+ \(layer \d [\w.]+ [AB]\); vector \d+: \d selections",
            texts["selection"],
        )
        assert re.fullmatch(r"[\w.]+, layer \d: ‖ΔW‖ = [\d.]+", texts["delta"])


def test_in_a_browser_the_correct_value_is_shown(browser, trained, tmp_path):
    path = page_of(trained, tmp_path, figures=["delta"])
    browser.get(path.as_uri())
    text = hover_text(browser, "delta", 0.5, 0.6)
    kind, layer, norm = re.fullmatch(r"([\w.]+), layer (\d): ‖ΔW‖ = ([\d.]+)", text).groups()
    (name,) = [
        module.name
        for module in trained
        if f"layer.{layer}." in module.name
        and module.name.partition(f"layer.{layer}.")[2] in (kind, f"attention.self.{kind}")
    ]
    import numpy as np

    assert float(norm) == pytest.approx(np.linalg.norm(trained.delta(name).astype(float)), rel=1e-3)


def test_in_a_browser_no_value_is_shown_outside_the_picture(browser, trained, tmp_path):
    path = page_of(trained, tmp_path, figures=["norms"])
    browser.get(path.as_uri())
    assert hover_text(browser, "norms", 0.5, 0.5)
    assert hover_text(browser, "norms", 0.005, 0.005) == ""


def test_in_a_narrow_browser_text_in_pictures_stays_readable(browser, trained, tmp_path):
    path = page_of(trained, tmp_path)
    size = browser.get_window_size()
    browser.set_window_size(500, 800)
    try:
        browser.get(path.as_uri())
        widths = browser.execute_script(
            "return [...document.querySelectorAll('.picture')].map(p => p.clientWidth)"
        )
        beyond = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    finally:
        browser.set_window_size(size["width"], size["height"])
    assert len(widths) == len(FIGURES)
    assert min(widths) >= 550
    assert beyond == 0  # only the pictures scroll sideways
