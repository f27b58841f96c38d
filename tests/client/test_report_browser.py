"""The page of a report in a browser: whole from a file, alone, on a phone and in the dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from brats_ldm_client import Client
from brats_ldm_client.report import write_report
from brats_ldm_client.testing import FakeTransport
from support.browser import Visitor


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    """The page of 40 images, moved away from them."""
    with Client(transport=FakeTransport(lambda seed: np.full((24, 24), seed / 40, np.float32))) as client:
        client.generate(40, seed=0).save(tmp_path / "slices")
    return write_report(tmp_path / "slices").rename(tmp_path / "moved.html")


def test_it_is_whole_in_itself(visitor: Visitor, page_file: Path) -> None:
    requests: list[str] = []
    visitor.context.on("request", lambda request: requests.append(request.url))
    page = visitor.open(page_file.as_uri())
    page.locator(".viewer[data-ready]").wait_for()
    assert page.get_by_role("heading", name="slices: 40 synthetic slices").is_visible()
    widths = page.locator("img").evaluate_all("pictures => pictures.map(picture => picture.naturalWidth)")
    assert widths == [24] * 40
    assert page.locator("[data-thumb]").count() == 32
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [page_file.as_uri()]


def test_its_table_is_searched(visitor: Visitor, page_file: Path) -> None:
    page = visitor.open(page_file.as_uri())
    page.get_by_text("Table of 40 images").click()
    rows = page.locator(".images tbody tr")
    assert rows.filter(visible=True).count() == 40
    page.get_by_label("Find a name or a seed").fill("SEED000000017")
    assert rows.filter(visible=True).count() == 1
    assert rows.filter(visible=True).locator("td").all_inner_texts() == ["slice_seed000000017.png", "17", "1"]


@pytest.mark.parametrize(("colours", "size"), [("light", (1280, 900)), ("dark", (1280, 900)), ("dark", (360, 740))])
def test_it_fits_the_window_and_the_colours(
    colours: str, size: tuple[int, int], browser: Browser, page_file: Path
) -> None:
    visitor = Visitor(browser, colours=colours, size=size)
    page = visitor.open(page_file.as_uri())
    page.locator(".viewer[data-ready]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in ground.strip("rgb()").split(",")) > 3 * 128
    assert light == (colours == "light")
    visitor.leave()


def test_on_paper_it_has_its_pictures_and_no_controls(visitor: Visitor, page_file: Path) -> None:
    page = visitor.open(page_file.as_uri())
    page.locator(".viewer[data-ready]").wait_for()
    page.emulate_media(media="print")
    assert page.locator("figure img").first.is_visible()
    assert page.locator(".v-side").is_hidden()
