"""`make studio`, as the documentation shows it: its pictures go to $BRATS_LDM_PICTURES."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from brats_ldm_client.studio.parts import preset_choices
from support.browser import SIZE, Visitor, screenshot
from support.serving import wait_until
from support.studio import PATIENCE, choose, figures, fill, made, open_page, press, studio, tab, wait_for_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of the page of `make studio`, over a server with the demo weights. Both end at SIGTERM."""
    with studio(program=["examples.studio"]) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(os.environ.get("BRATS_LDM_PICTURES") or tmp_path)


def test_generate(visitor: Visitor, demo: str, folder: Path) -> None:
    page = open_page(visitor, demo)
    fill(page, "generate-seeds", "0-7")
    choose(page, "generate-preset", next(words for words, name in preset_choices() if name == "standard"))
    press(page, "generate-run")
    wait_until(lambda: previewed(page) >= 6, "there are no previews", PATIENCE)
    keep(page, folder / "studio-generating.png")
    made(page, "generate-grid", 8)
    wait_for_words(page, "generate-words", "8 synthetic slices")
    wait_for_words(page, "server-line", "queue: empty")
    keep(page, folder / "studio.png")


def previewed(page: Page) -> int:
    """Pictures that have done half of their steps."""
    return sum(figure.step >= 25 for figure in figures(page, "generate-grid", "preview"))


def test_compare(visitor: Visitor, demo: str, folder: Path) -> None:
    page = open_page(visitor, demo)
    tab(page, "Compare")
    fill(page, "compare-seed", 2)
    for sampler in ("DDIM", "DPM-Solver++"):
        choose(page, "compare-samplers", sampler)
    fill(page, "compare-steps", "5, 10, 20")
    press(page, "compare-run")
    made(page, "compare-grid", 7)
    wait_for_words(page, "server-line", "queue: empty")
    keep(page, folder / "studio-compare.png")


def test_a_wrong_value(visitor: Visitor, demo: str, folder: Path) -> None:
    page = open_page(visitor, demo)
    fill(page, "generate-seeds", "brain")
    press(page, "generate-run")
    wait_for_words(page, "generate-words", "“brain”")
    keep(page, folder / "studio-error.png")


def keep(page: Page, path: Path) -> None:
    """A picture of the window, small enough for a repository: its colours are few."""
    with Image.open(screenshot(page, path)) as picture:
        assert picture.size == SIZE
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
