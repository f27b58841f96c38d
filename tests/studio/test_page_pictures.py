"""The studio with the demo weights, as the documentation shows it: its pictures go to $BRATS_LDM_PICTURES."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from server.process import TritonServer
from support.browser import SIZE, Visitor, screenshot
from support.common import ROOT
from support.studio import choose, fill, made, open_page, press, studio, tab, wait_for_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of a studio for a server with the demo weights."""
    with TritonServer(ROOT / "model_repository") as server:
        server.probe()
        with studio("--url", server.grpc_url) as address:
            yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(os.environ.get("BRATS_LDM_PICTURES") or tmp_path)


def test_generate(visitor: Visitor, demo: str, folder: Path) -> None:
    page = open_page(visitor, demo)
    fill(page, "generate-seeds", "0-7")
    choose(page, "generate-preset", "Fast · DPM-Solver++, 20 steps")
    press(page, "generate-run")
    made(page, "generate-grid", 8)
    wait_for_words(page, "generate-words", "8 synthetic slices")
    keep(page, folder / "studio.png")


def test_compare(visitor: Visitor, demo: str, folder: Path) -> None:
    page = open_page(visitor, demo)
    tab(page, "Compare")
    fill(page, "compare-seed", 2)
    for sampler in ("DDIM", "DPM-Solver++"):
        choose(page, "compare-samplers", sampler)
    fill(page, "compare-steps", "5, 10, 20")
    press(page, "compare-run")
    made(page, "compare-grid", 7)
    keep(page, folder / "studio-compare.png")


def keep(page: Page, path: Path) -> None:
    """A picture of the window, small enough for a repository: its colours are few."""
    wait_for_words(page, "server-line", "queue: empty")
    with Image.open(screenshot(page, path)) as picture:
        assert picture.size == SIZE
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
