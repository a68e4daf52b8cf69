"""report.html in a real Chromium: it opens without an error, shows the manifest's numbers, and answers the pointer."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from luq_gguf.job import REPORT
from tests.program import Run, result_of
from tests.test_report import at, folder_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow
VALUES = """() => [...document.querySelectorAll("[data-from]")].map(
  mark => [mark.dataset.from, mark.getAttribute("value") ?? mark.dataset.value, mark.textContent.trim(),
           mark.getBoundingClientRect().width])"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of the system; one that is missing fails where everything is to be tested."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        assert os.environ.get("CI") != "true", "install chromium"
        pytest.skip("no chromium here")
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, converted: Run, errors: list[str]) -> Iterator[Page]:
    """The report, opened; what the browser complains of, or asks a network for, is collected."""
    context = browser.new_context(viewport={"width": 1240, "height": 900}, color_scheme=request.param)
    opened = context.new_page()
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda asked: errors.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto((folder_of(converted) / REPORT).as_uri())
    yield opened
    context.close()


def test_it_opens_without_an_error_and_shows_the_records_numbers(
    page: Page, errors: list[str], converted: Run, tmp_path: Path
) -> None:
    folder, result = folder_of(converted), result_of(converted)
    shown = page.evaluate(VALUES)
    assert len(shown) > 80
    for pointer, value, text, width in shown:
        assert value == str(at(folder, pointer))
        assert width > 0, f"{pointer} is not to be seen: {text}"
    texts = {pointer: text for pointer, _, text, _ in shown}
    manifest = json.loads((folder / "manifest.json").read_text())
    name = Path(result["model"]).name
    assert texts[f"manifest.json#/files/{name}/bytes"] == f"{manifest['files'][name]['bytes']:,}"
    assert texts[f"manifest.json#/files/{name}/sha256"] == manifest["files"][name]["sha256"]
    assert page.title() == "Pico-VL-Instruct: 1 of 3 layers Q2_K"
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    with Image.open(tmp_path / "report.png") as image:
        assert image.height > 2000
        assert len(image.convert("RGB").resize((200, 400)).getcolors(80_000) or []) > 50
    assert errors == []


def test_it_follows_the_color_scheme(page: Page, request: pytest.FixtureRequest) -> None:
    red, green, blue = page.evaluate(
        "() => getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    dark = page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    assert (red + green + blue < 150) is dark


def point_at(page: Page, mark: Locator) -> None:
    """Move the pointer there when the page has come to rest: what is shown goes away where the page moves."""
    mark.scroll_into_view_if_needed()
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    mark.hover()


def test_the_pointer_shows_what_a_mark_is(page: Page, errors: list[str], converted: Run) -> None:
    from playwright.sync_api import expect

    tip = page.locator("#tip")
    assert tip.is_hidden()
    point_at(page, page.locator("svg .tile").nth(0))
    expect(tip).to_be_visible()
    assert "bytes" in tip.inner_text()
    assert tip.inner_text() == page.locator("svg .tile").nth(0).get_attribute("data-tip")
    mark = page.locator("svg circle[data-from='scores.json#/entropy/output_multimodal/1/mean']")
    point_at(page, mark)
    expect(tip).to_be_visible()
    mean = at(folder_of(converted), "scores.json#/entropy/output_multimodal/1/mean")
    assert f"{mean:.3f}" in tip.inner_text()
    box, size = tip.bounding_box(), page.viewport_size
    assert box is not None
    assert size is not None
    assert 0 <= box["x"] <= size["width"] - box["width"]
    point_at(page, page.locator("h1"))
    expect(tip).to_be_hidden()
    assert errors == []


def test_it_prints_on_few_pages_and_fits_a_telephone(page: Page, tmp_path: Path) -> None:
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
