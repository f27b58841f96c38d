"""The tabs Compare and Walk of the studio: a real page in a browser, a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from playwright.sync_api import Page
from torchmetrics.functional.image import structural_similarity_index_measure

from brats_ldm_client import Client
from brats_ldm_client.pictures import difference_picture, marked
from brats_ldm_client.studio.parts import preset_choices
from server.process import TritonServer
from support.serving import gauge, wait_for_rows, wait_until, wait_until_idle
from support.studio import (
    PATIENCE,
    choose,
    download,
    fill,
    made,
    picture_of,
    press,
    tab,
    unpacked,
    wait_for_figures,
    wait_for_words,
)

pytestmark = pytest.mark.slow
SAMPLERS, STEPS = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++"}, (5, 10)


def ssim(image: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """By torchmetrics, which shares no code with scikit-image; both with Wang's Gaussian window."""
    one, two = (torch.from_numpy(np.clip(each, 0, 1))[None, None].double() for each in (image, other))
    _, everywhere = structural_similarity_index_measure(one, two, sigma=1.5, data_range=1.0, return_full_image=True)
    return float(everywhere[..., 5:-5, 5:-5].mean())  # where the window needs no pixels beyond the border


def compare(page: Page, seed: int, steps: str) -> None:
    tab(page, "Compare")
    fill(page, "compare-seed", seed)
    for label in SAMPLERS.values():
        choose(page, "compare-samplers", label)
    fill(page, "compare-steps", steps)
    press(page, "compare-run")


def test_samplers_and_steps_side_by_side(page: Page, plain: Client) -> None:
    compare(page, 7, "5, 10")
    shown = wait_for_figures(page, "compare-grid", 5, "difference")
    differences = {(each.data["sampler"], each.data["steps"]): each for each in shown}
    reference = plain.generate(seeds=[7]).images[0]
    for figure in made(page, "compare-grid", 5):
        key = figure.data["sampler"], figure.data["steps"]
        image = plain.generate(seeds=[7], sampler=key[0], steps=int(key[1])).images[0]
        np.testing.assert_array_equal(figure.pixels, picture_of(image))
        assert float(figure.data["ssim"]) == pytest.approx(ssim(image, reference), abs=1e-6)
        np.testing.assert_array_equal(differences[key].pixels, marked(difference_picture(image, reference)))
    assert set(differences) == {(sampler, str(steps)) for sampler in SAMPLERS for steps in STEPS} | {("ddim", "50")}
    assert float(differences["ddim", "50"].data["ssim"]) == 1, "the reference"


def test_grids_and_decoders_side_by_side(page: Page, plain: Client) -> None:
    tab(page, "Compare")
    for sampler in ("DDIM", "DPM-Solver++"):
        page.locator("#compare-samplers").get_by_label(sampler, exact=True).uncheck()
    choose(page, "compare-samplers", "DPM-Solver++ 3M")
    choose(page, "compare-timesteps", "Log SNR")
    choose(page, "compare-decoder", "Tiny decoder")
    choose(page, "compare-reference", next(words for words, name in preset_choices() if name == "fast"))
    fill(page, "compare-steps", "6")
    press(page, "compare-run")
    shown = {(each.data["grid"], each.data["decoder"]): each for each in made(page, "compare-grid", 5)[1:]}
    assert set(shown) == {(grid, decoder) for grid in ("leading", "log_snr") for decoder in ("full", "tiny")}
    for (grid, decoder), figure in shown.items():
        how = {"sampler": "dpmpp_3m", "steps": 6, "timestep_grid": grid, "decoder": decoder}
        np.testing.assert_array_equal(figure.pixels, picture_of(plain.generate(seeds=[42], **how).images[0]))


def test_a_comparison_can_be_stopped(page: Page, toy: TritonServer, slow: Callable[[float], None]) -> None:
    before = gauge(toy, "mri_ldm_cancelled_rows_total")
    slow(0.5)
    compare(page, 7, "500, 1000")
    wait_for_rows(toy, 5)
    press(page, "compare-stop")
    wait_for_words(page, "compare-words", "Stopped")
    wait_until(lambda: gauge(toy, "mri_ldm_cancelled_rows_total") - before == 5, "the work goes on", PATIENCE)
    wait_until_idle(toy)


def walk(page: Page, start: int, end: int, count: int) -> None:
    tab(page, "Walk")
    fill(page, "walk-a", start)
    fill(page, "walk-b", end)
    fill(page, "walk-count", count)
    press(page, "walk-run")


def test_a_walk_has_the_images_of_both_seeds_at_its_ends(page: Page, plain: Client, tmp_path: Path) -> None:
    walk(page, 3, 8, 5)
    strip = made(page, "walk-strip", 5)
    wait_for_words(page, "walk-words", "5 synthetic slices")
    ends = [picture_of(image) for image in plain.generate(seeds=[3, 8], preset="fast").images]
    np.testing.assert_array_equal(strip[0].pixels, ends[0])
    np.testing.assert_array_equal(strip[-1].pixels, ends[1])
    assert len({each.png for each in strip}) == 5
    slider = page.locator("#walk-slider")
    for place in (0, 2, 4):
        slider.fill(str(place))
        [big] = wait_for_figures(page, "walk-big", 1, "image")
        assert big.png == strip[place].png, "the picture changes at once"
    folder = unpacked(download(page, "walk", "NIfTI", tmp_path))
    record = json.loads((folder / "provenance.json").read_text())
    fractions = {each["file"]: each["walk"]["fraction"] for each in record["images"]}
    assert sorted({*fractions.values()}) == [0, 0.25, 0.5, 0.75, 1]
    assert len([*folder.glob("*.nii.gz")]) == 5
