"""The viewer of slices: its values against NumPy, and in a browser its pixels, window, zoom and keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page

from brats_ldm_client import InvalidRequest
from brats_ldm_client._formats.levels import stored_levels, values
from brats_ldm_client.pictures import MARK, as_rows, grey_levels, to_display
from brats_ldm_client.viewer import EXACT, LIMIT, Shown, viewer, viewer_page
from support.browser import Visitor
from support.report_page import ReportPage, viewed_values

MARGIN, STRIP = 22, 24  # CSS pixels, as in viewer.js


def image_of(seed: int, width: int = 60, height: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).random((width, height), np.float32) * 1.4 - 0.2


def shown_images() -> list[Shown]:
    """One of each kind, the first with what no display knows."""
    odd = image_of(0)
    odd[0, :3] = np.nan, np.inf, -np.inf
    return [
        Shown("float", odd),
        Shown("8 bits", stored_levels(image_of(1), 8), pixel_mm=(0.5, 0.5)),
        Shown("16 bits", stored_levels(image_of(2, 48, 60), 16)),
        Shown("of unknown origin", image_of(3), synthetic=False, pixel_mm=None, oriented=False),
    ]


def parsed(html: str, tmp_path: Path) -> ReportPage:
    (tmp_path / "viewer.html").write_text(html)
    return ReportPage(tmp_path / "viewer.html")


# --- the values in the page


def test_values_are_exact_where_there_is_room(tmp_path: Path) -> None:
    page = parsed(viewer(shown_images()), tmp_path)
    for shown, packed in zip(shown_images(), page.viewed["images"], strict=True):
        np.testing.assert_array_equal(viewed_values(packed), values(shown.image))
        assert (packed["mark"] != "") == shown.synthetic
    assert page.viewed["full"] == [0, 1]
    assert page.outside == []


def test_many_images_are_rounded_to_16_bits(tmp_path: Path) -> None:
    images = [(f"{seed}", image_of(seed, 200, 200)) for seed in range(LIMIT)]
    assert sum(image.nbytes for _, image in images) > EXACT
    images[1][1][0, 0] = np.nan  # has no place among 16 bits
    page = parsed(viewer(images), tmp_path)
    for (_, image), packed in zip(images, page.viewed["images"], strict=True):
        step = 0 if np.isnan(image).any() else float(np.ptp(image)) / 65535
        np.testing.assert_allclose(viewed_values(packed), image, rtol=1e-7, atol=step * 0.5001)
    assert page.viewed["images"][0]["precision"] == "Values are rounded to steps of 0.00002."
    assert page.viewed["images"][1]["precision"] == "Values are exact, as float32."


def test_a_constant_image_keeps_its_value(tmp_path: Path) -> None:
    images = [("flat", np.full((1100, 1100), 0.3, np.float32))]
    (packed,) = parsed(viewer(images), tmp_path).viewed["images"]
    assert packed["kind"] == "u2"
    assert (viewed_values(packed) == np.float32(0.3)).all()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "takes 1 to 64 images, and got 0"),
        ([("a", image_of(0))] * 65, "takes 1 to 64 images, and got 65"),
        ([("a", np.zeros((2, 2, 2), np.float32))], r"'a' has the shape \(2, 2, 2\): give \[x, y\]"),
        ([("a", np.zeros((0, 2), np.float32))], r"'a' has the shape \(0, 2\)"),
        ([("a", np.zeros((4, 4), np.uint32))], "'a' is of uint32: give values as float32, or grey levels as uint8"),
    ],
)
def test_what_is_no_slice_is_refused(images: list[tuple[str, np.ndarray]], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        viewer(images)


# --- in a browser


@pytest.fixture
def open_viewer(visitor: Visitor, tmp_path: Path) -> Callable[..., Page]:
    """Opens a page with a viewer, from a file."""

    def open_page(images: list[Shown] | None = None) -> Page:
        path = tmp_path / "page.html"
        path.write_text(viewer_page(shown_images() if images is None else images), "utf-8")
        page = visitor.open(path.as_uri())
        page.locator(".viewer[data-ready]").wait_for()
        return page

    return open_page


def state(page: Page) -> dict[str, float]:
    """What the viewer says of itself: index, width, level, zoom."""
    data = page.locator(".viewer").evaluate("root => ({...root.dataset})")
    return {name: float(value) for name, value in data.items() if name != "ready"}


def canvas(page: Page) -> Locator:
    return page.locator("canvas.v-canvas")


def place(page: Page, image: Shown) -> tuple[float, float, float]:
    """Left, top and pixels a value of a slice on the canvas, at the first zoom."""
    size = canvas(page).evaluate("canvas => [canvas.clientWidth, canvas.clientHeight]")
    width, height = size[0], size[1] - (STRIP if image.synthetic else 0)
    columns, rows = image.image.shape
    scale = min((width - 2 * MARGIN) / columns, (height - 2 * MARGIN) / rows)
    return width / 2 - columns * scale / 2, height / 2 - rows * scale / 2, scale


def pixels(page: Page, image: Shown) -> np.ndarray:
    """The grey levels in the middle of each pixel of a slice, as rows."""
    left, top, scale = place(page, image)
    columns, rows = image.image.shape
    levels = canvas(page).evaluate(
        """(canvas, [left, top, scale, columns, rows]) => {
            const pen = canvas.getContext("2d"), all = pen.getImageData(0, 0, canvas.width, canvas.height);
            const found = [];
            for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
                const x = Math.floor(left + (column + 0.5) * scale), y = Math.floor(top + (row + 0.5) * scale);
                found.push(all.data[4 * (y * all.width + x)]);
            }
            return found;
        }""",
        [left, top, scale, columns, rows],
    )
    return np.array(levels, np.uint8).reshape(rows, columns)


def in_window(image: np.ndarray, width: float, level: float) -> np.ndarray:
    """The formula: black at level - width / 2, white at level + width / 2."""
    return as_rows(grey_levels((values(image).astype(np.float64) - (level - width / 2)) / width).astype(np.uint8))


def test_the_canvas_shows_what_the_client_shows(open_viewer: Callable[..., Page]) -> None:
    page = open_viewer()
    for index, shown in enumerate(shown_images()):
        page.locator("[data-thumb]").nth(index).click()
        np.testing.assert_array_equal(pixels(page, shown), to_display(values(shown.image)))
        assert page.locator("[data-part=label]").inner_text() == f"{shown.label} ({index + 1} of 4)"


def test_only_what_is_known_stands_in_the_picture(open_viewer: Callable[..., Page]) -> None:
    """The mark below, the letters at the sides: of a slice of unknown origin neither."""
    page = open_viewer()

    def brightest(x: float, y: float, width: float, height: float) -> int:
        code = """(canvas, box) => {
            const levels = canvas.getContext("2d").getImageData(...box).data;
            return Math.max(...levels.filter((_, place) => place % 4 < 3));
        }"""
        return int(canvas(page).evaluate(code, [x, y, width, height]))

    size = canvas(page).evaluate("canvas => [canvas.width, canvas.height]")
    sides = {"mark": (20, size[1] - STRIP + 2, size[0] - 40, STRIP - 4), "R": (0, size[1] // 2 - 30, MARGIN - 2, 40)}
    assert all(brightest(*box) > 150 for box in sides.values())
    page.locator("[data-thumb]").nth(3).click()
    assert all(brightest(*box) == 0 for box in sides.values())


def test_dragging_changes_window_and_level(open_viewer: Callable[..., Page]) -> None:
    page, shown = open_viewer(), shown_images()[0]
    box = canvas(page).bounding_box()
    assert box is not None
    start = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] - 100, start[1] + 60, steps=5)
    page.mouse.up()
    after = state(page)
    assert after["width"] == pytest.approx(1 - 100 / box["width"], abs=1e-6)
    assert after["level"] == pytest.approx(0.5 + 60 / box["height"], abs=1e-6)
    expected = in_window(shown.image, after["width"], after["level"]).astype(int)
    assert np.abs(pixels(page, shown).astype(int) - expected).max() <= 1  # float32 there, float64 here
    page.mouse.move(start[0], start[1])  # without a button
    assert state(page) == after


@pytest.mark.parametrize("index", [0, 1, 3])
def test_the_value_and_the_place_under_the_pointer(index: int, open_viewer: Callable[..., Page]) -> None:
    page, shown = open_viewer(), shown_images()[index]
    page.locator("[data-thumb]").nth(index).click()
    left, top, scale = place(page, shown)
    x, y = 50, 7  # far to the patient's right, and posterior
    column, row = shown.image.shape[0] - 1 - x, shown.image.shape[1] - 1 - y
    canvas(page).hover(position={"x": left + (column + 0.5) * scale, "y": top + (row + 0.5) * scale})
    said = page.locator("[data-part=pixel]").inner_text()
    value, _, where = said.partition(" at ")
    assert float(value) == pytest.approx(float(values(shown.image)[x, y]), rel=1e-4)
    if shown.pixel_mm is None:
        assert where == f"column {column}, row {row}"
    else:
        right, back = (x - 29.5) * shown.pixel_mm[0], (23.5 - y) * shown.pixel_mm[1]
        shares = re.fullmatch(r"R ([\d.]+) mm, P ([\d.]+) mm", where)
        assert shares is not None, where
        assert [float(share) for share in shares.groups()] == pytest.approx([right, back], abs=0.051)
    canvas(page).hover(position={"x": 2, "y": 2})
    assert page.locator("[data-part=pixel]").inner_text() == ""


def test_a_value_that_is_no_number(open_viewer: Callable[..., Page]) -> None:
    page, shown = open_viewer(), shown_images()[0]
    left, top, scale = place(page, shown)
    canvas(page).hover(position={"x": left + 59.5 * scale, "y": top + 47.5 * scale})  # x = 0, y = 0
    assert page.locator("[data-part=pixel]").inner_text().startswith("not a number at L ")


def test_everything_works_with_keys(open_viewer: Callable[..., Page]) -> None:
    page, images = open_viewer(), shown_images()
    canvas(page).focus()
    left, top, scale = place(page, images[0])
    spot = {"x": left + 20.5 * scale, "y": top + 20.5 * scale}
    canvas(page).hover(position=spot)
    before = page.locator("[data-part=pixel]").inner_text()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    canvas(page).hover(position={"x": spot["x"] + 20, "y": spot["y"] - 20})
    assert page.locator("[data-part=pixel]").inner_text() == before  # the slice has moved there
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert state(page)["index"] == 2
    np.testing.assert_array_equal(pixels(page, images[2]), to_display(values(images[2].image)))
    page.keyboard.press("ArrowUp")
    assert state(page)["level"] == pytest.approx(0.48)  # brighter
    page.keyboard.press("+")
    assert state(page)["zoom"] == pytest.approx(1.25)
    page.keyboard.press("0")
    assert (state(page)["level"], state(page)["zoom"]) == (0.5, 1)
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert state(page)["index"] == 3
    page.locator("input[data-part=width]").focus()
    page.keyboard.press("ArrowRight")
    assert state(page)["width"] == pytest.approx(1.001, abs=1e-9)
    page.get_by_label("Level as a number").fill("0.25")
    page.keyboard.press("Enter")
    assert state(page)["level"] == 0.25
    page.get_by_label("Width as a number").fill("")  # no number: nothing changes
    page.keyboard.press("Enter")
    assert state(page)["width"] == pytest.approx(1.001, abs=1e-9)


def test_windows_that_fit_the_slice(open_viewer: Callable[..., Page]) -> None:
    page = open_viewer()
    image = shown_images()[0].image
    finite = np.sort(image[np.isfinite(image)])
    head = finite[finite > np.float32(0.1)]
    for name, each, shares in (("Auto", finite, (0.005, 0.995)), ("Brain", head, (0.02, 0.98))):
        page.get_by_role("button", name=name).click()
        low, high = (each[math.floor(share * (len(each) - 1) + 0.5)] for share in shares)
        after = state(page)
        assert after["width"] == pytest.approx(high - low, abs=1e-5)
        assert after["level"] == pytest.approx((low + high) / 2, abs=1e-5)
    page.get_by_role("button", name="Full").click()
    assert (state(page)["width"], state(page)["level"]) == (1, 0.5)


def test_the_wheel_zooms_where_the_pointer_is_after_a_click(
    open_viewer: Callable[..., Page],
) -> None:
    page, shown = open_viewer(), shown_images()[0]
    left, top, scale = place(page, shown)
    spot = {"x": left + 40.5 * scale, "y": top + 11.5 * scale}
    canvas(page).hover(position=spot)
    page.mouse.wheel(0, -300)
    assert state(page)["zoom"] == 1  # the page scrolls
    canvas(page).click(position=spot)
    before = page.locator("[data-part=pixel]").inner_text()
    page.mouse.wheel(0, -400)
    page.locator(".viewer:not([data-zoom='1'])").wait_for()
    assert state(page)["zoom"] == pytest.approx(math.e, rel=0.01)
    box = canvas(page).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + spot["x"] + 1, box["y"] + spot["y"] + 1)
    assert page.locator("[data-part=pixel]").inner_text() == before
    page.get_by_role("button", name="Move").click()
    page.mouse.move(box["x"] + spot["x"], box["y"] + spot["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + spot["x"] + 40, box["y"] + spot["y"] + 30)
    assert page.locator("[data-part=pixel]").inner_text() != ""
    page.mouse.up()
    page.mouse.move(box["x"] + spot["x"] + 41, box["y"] + spot["y"] + 31)
    assert page.locator("[data-part=pixel]").inner_text() == before  # it has moved with the pointer
    assert (state(page)["width"], state(page)["level"]) == (1, 0.5)
    page.get_by_role("button", name="Reset").click()
    np.testing.assert_array_equal(pixels(page, shown), to_display(shown.image))


def test_two_fingers_zoom(open_viewer: Callable[..., Page]) -> None:
    page = open_viewer()
    box = canvas(page).bounding_box()
    assert box is not None
    middle, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *apart: float) -> None:
        fingers = [{"x": middle + side * each, "y": y, "id": i} for each in apart for i, side in enumerate((-1, 1))]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", 50)
    touch("touchMove", 75)
    touch("touchMove", 100)
    touch("touchEnd")
    page.wait_for_function("document.querySelector('.viewer').dataset.zoom > 1.5")
    assert state(page)["zoom"] == pytest.approx(2, rel=0.05)
    assert (state(page)["width"], state(page)["level"]) == (1, 0.5)


def test_smooth_is_between_the_values(open_viewer: Callable[..., Page]) -> None:
    image = np.zeros((8, 8), np.float32)
    image[4:] = 1
    shown = Shown("edge", image)
    page = open_viewer([shown])
    code = """canvas => {
        const levels = canvas.getContext("2d").getImageData(0, 100, canvas.width, 1).data;
        return new Set(levels.filter((_, place) => place % 4 === 0)).size;
    }"""
    assert canvas(page).evaluate(code) == 2
    page.get_by_role("button", name="Smooth").click()
    assert canvas(page).evaluate(code) > 20


def test_it_stands_alone_in_a_frame_and_twice_in_a_page(visitor: Visitor, tmp_path: Path) -> None:
    alone = viewer([("a </script><b>", image_of(0))])
    frame = f'<iframe srcdoc="{escape(alone)}" width="900" height="700"></iframe>'
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title>t</title>{frame}{viewer(shown_images())}{alone}", "utf-8")
    page = visitor.open(path.as_uri())
    page.frame_locator("iframe").locator(".viewer[data-ready]").wait_for()
    page.locator(".viewer[data-ready]").nth(1).wait_for()
    page.locator(".viewer").nth(0).locator("[data-part=after]").click()
    indices = page.locator(".viewer").evaluate_all("roots => roots.map(root => root.dataset.index)")
    assert indices == ["1", "0"]
    label = page.frame_locator("iframe").locator("[data-part=label]")
    assert label.inner_text() == "a </script><b> (1 of 1)"
    assert page.locator("[data-part=turn]").nth(1).is_hidden()


def test_a_browser_that_cannot_unpack_says_so(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(viewer_page([("a", image_of(0))]), "utf-8")
    page = visitor.context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "page.html").as_uri())
    words = "No viewer: this browser cannot unpack the values: use one of 2023 or later."
    page.get_by_text(words).wait_for()
    canvas(page).hover(force=True)
    page.get_by_role("button", name="Next", include_hidden=True).click(force=True)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # the visitor notes that nothing went wrong


def test_it_fits_a_phone(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(viewer_page(shown_images()), "utf-8")
    page = visitor.open((tmp_path / "page.html").as_uri())
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator(".viewer[data-ready]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shown = shown_images()[0]
    page.wait_for_function(
        "document.querySelector('.v-canvas').width === document.querySelector('.v-canvas').clientWidth"
    )
    np.testing.assert_array_equal(pixels(page, shown), to_display(shown.image))


def test_the_mark_is_that_of_all_pictures(tmp_path: Path) -> None:
    text = viewer([("a", image_of(0))])
    assert json.dumps(MARK) in text
