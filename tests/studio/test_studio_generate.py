"""The tab Generate of the studio: a real page in a browser, a real server."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Page

from brats_ldm_client import Client
from server.process import TritonServer
from support.browser import Visitor
from support.serving import gauge, tensors, wait_for_rows, wait_until, wait_until_idle
from support.studio import ask, figures, fill, made, open_page, picture_of, press, wait_for_words, words

pytestmark = pytest.mark.slow
Slow = Callable[[float], None]


def test_a_grid_of_images(page: Page, plain: Client) -> None:
    """They are those that a plain client gets, with the mark below them and the notice in the file."""
    fill(page, "generate-seeds", "3, 5, 8, 13")
    press(page, "generate-run")
    shown = made(page, "generate-grid", 4)
    wait_for_words(page, "generate-words", r"4 synthetic slices in [\d.]+ s")
    assert [figure.seed for figure in shown] == [3, 5, 8, 13]
    for figure, image in zip(shown, plain.generate(seeds=[3, 5, 8, 13]).images, strict=True):
        np.testing.assert_array_equal(figure.pixels, picture_of(image))
        assert f"seed {figure.seed}" in figure.caption
        assert b"not for diagnosis" in figure.png
        assert "synthetic" in figure.alt.lower()


def test_previews_change_while_it_runs(page: Page, slow: Slow) -> None:
    """With progress and the time that is left."""
    slow(0.3)
    ask(page, "1, 2", steps=20)
    seen: dict[int, bytes] = {}
    texts = set()

    def enough() -> bool:
        for figure in figures(page, "generate-grid", "preview"):
            assert re.search(r"step \d+ of 20", figure.caption)
            seen[figure.step] = figure.png
        texts.add(words(page, "generate-progress"))
        return len(seen) > 3

    wait_until(enough, "the previews do not change")
    assert len(set(seen.values())) == len(seen), "each step has its own picture"
    assert any(re.search(r"left", text) for text in texts), texts
    slow(0)
    made(page, "generate-grid", 2)
    assert figures(page, "generate-grid", "preview") == []


def test_stop_ends_the_work_within_a_step(page: Page, toy: TritonServer, slow: Slow) -> None:
    before = gauge(toy, "mri_ldm_cancelled_rows_total")
    slow(0.5)
    ask(page, "0-3", steps=1000)
    wait_until(lambda: len(figures(page, "generate-grid", "preview")) == 4, "no previews have come")
    press(page, "generate-stop")
    stopped = wait_for_words(page, "generate-words", r"Stopped at step (\d+) of 1000")
    calls = gauge(toy, "mri_ldm_unet_calls_total")
    wait_until_idle(toy)
    # The call under way ends; the metrics may be a tenth of a second behind it.
    assert gauge(toy, "mri_ldm_unet_calls_total") - calls <= 2
    assert gauge(toy, "mri_ldm_cancelled_rows_total") - before == 4
    steps = [figure.step for figure in figures(page, "generate-grid")]
    assert len(steps) == 4, "the last pictures stay"
    assert min(steps) <= int(stopped[1]) <= max(steps)
    slow(0)
    ask(page, "6", steps=2)
    assert [figure.seed for figure in made(page, "generate-grid", 1)] == [6]


def test_closing_the_tab_ends_the_work(visitor: Visitor, address: str, toy: TritonServer, slow: Slow) -> None:
    page = open_page(visitor, address)
    before = gauge(toy, "mri_ldm_cancelled_rows_total")
    slow(0.5)
    ask(page, "0-3", steps=1000)
    wait_until(lambda: len(figures(page, "generate-grid", "preview")) == 4, "no previews have come")
    page.close()
    wait_until(lambda: gauge(toy, "mri_ldm_cancelled_rows_total") - before == 4, "the work goes on")
    wait_until_idle(toy)


@pytest.mark.parametrize(
    ("seeds", "steps", "says"),
    [("7", 0, r"steps.* 0"), ("7", 5000, r"steps.* 5000"), ("seven", 4, r"seven"), ("", 4, r"seed"), ("9-2", 4, "9-2")],
)
def test_a_wrong_value_is_a_sentence(page: Page, toy: TritonServer, seeds: str, steps: int, says: str) -> None:
    """Beside the form, which stays as it was; nothing is sent."""
    wait_until_idle(toy)
    before = gauge(toy, "mri_ldm_errors_total"), gauge(toy, "mri_ldm_images_total")
    ask(page, seeds, steps=steps)
    wait_for_words(page, "generate-words", says)
    assert page.locator("#generate-seeds").locator("textarea, input").first.input_value() == seeds
    assert "Traceback" not in words(page, "generate-words")
    wait_until_idle(toy)
    assert (gauge(toy, "mri_ldm_errors_total"), gauge(toy, "mri_ldm_images_total")) == before
    assert figures(page, "generate-grid", "image") == []


def test_a_busy_server_is_asked_again(page: Page, raw_toy, toy: TritonServer, slow: Slow) -> None:
    slow(0.2)
    raw_toy.start_stream(lambda result, error: None)
    for _ in range(2):  # 40 s of work each, of which an eighth makes room for one row
        raw_toy.async_stream_infer("mri_ldm_stream", tensors(seed=[*range(8)], steps=[200] * 8))
    wait_for_rows(toy, 8, "waiting")
    ask(page, "5", steps=2)
    wait_for_words(page, "generate-words", r"no room now.*again in \d+ s")
    raw_toy.stop_stream(cancel_requests=True)
    slow(0)
    assert [figure.seed for figure in made(page, "generate-grid", 1)] == [5]
    assert "no room" not in words(page, "generate-words")


def test_two_tabs_at_once_show_their_own(visitor: Visitor, address: str, toy: TritonServer, slow: Slow) -> None:
    slow(0.3)
    tabs = [open_page(visitor, address) for _ in range(2)]
    for page, seeds in zip(tabs, ("1, 2", "11, 12"), strict=True):
        ask(page, seeds, steps=10)
    wait_until(lambda: gauge(toy, "mri_ldm_rows_in_flight") == 4, "the runs do not go on at the same time")
    slow(0)
    for page, seeds in zip(tabs, ([1, 2], [11, 12]), strict=True):
        assert [figure.seed for figure in made(page, "generate-grid", 2)] == seeds
        assert [figure.seed for figure in figures(page, "generate-grid")] == seeds
