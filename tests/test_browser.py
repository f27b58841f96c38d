"""What the tests' browser notices of a page: without that, a test of a page could not fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from support.browser import Visitor, screenshot

ASKS_ANOTHER_MACHINE = '<img src="http://pictures.invalid/brain.png">'
FAULTS = {
    "console: mine": '<script>console.error("mine")</script>',
    "uncaught: mine": '<script>throw new Error("mine")</script>',
    "failed: GET file:///nothing.png: net::ERR_FILE_NOT_FOUND": '<img src="file:///nothing.png">',
}


@pytest.mark.parametrize(("words", "code"), FAULTS.items())
def test_faults_are_noticed(browser: Browser, tmp_path: Path, words: str, code: str) -> None:
    visitor = Visitor(browser)
    visitor.open(page(tmp_path, code))
    assert words in visitor.faults
    with pytest.raises(AssertionError):
        visitor.leave()


def test_requests_to_other_machines_are_noticed(browser: Browser, tmp_path: Path) -> None:
    visitor = Visitor(browser)
    visitor.open(page(tmp_path, ASKS_ANOTHER_MACHINE))
    assert visitor.outside == ["http://pictures.invalid/brain.png"]
    with pytest.raises(AssertionError):
        visitor.leave()


def test_text_is_drawn_and_not_boxes(visitor: Visitor, tmp_path: Path) -> None:
    """Without a font every letter is the same box, or nothing."""
    tab = visitor.open(page(tmp_path, "<p style='font: 40px sans-serif'>il</p><p style='font: 40px sans-serif'>MW</p>"))
    ink = []
    for paragraph in tab.locator("p").all():
        paragraph.screenshot(path=tmp_path / "letters.png")
        with Image.open(tmp_path / "letters.png") as letters:
            ink.append(sum(letters.convert("L").histogram()[:128]))
    assert 0 < ink[0] < 0.7 * ink[1]
    with Image.open(screenshot(tab, tmp_path / "shots" / "page.png")) as whole:
        assert whole.size == (1280, 900)


def page(folder: Path, body: str) -> str:
    """The address of a page with this body."""
    file = folder / "page.html"
    file.write_text(f"<!doctype html><title>page</title>{body}")
    return file.as_uri()
