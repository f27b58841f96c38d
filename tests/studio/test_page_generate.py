"""The tab Generate of the studio: a real page in a browser, a real server, files as other programs read them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import tritonclient.grpc as triton
from PIL import Image
from playwright.sync_api import Page

from brats_ldm_client import Client
from brats_ldm_client.pictures import NOTICE
from server.process import TritonServer
from support.browser import Visitor
from support.serving import gauge, metrics_text, tensors, wait_for_rows, wait_until, wait_until_idle
from support.studio import (
    PATIENCE,
    ask,
    choose,
    download,
    field,
    figures,
    fill,
    made,
    open_page,
    picture_of,
    press,
    unpacked,
    wait_for_figures,
    wait_for_words,
    words,
)

pytestmark = pytest.mark.slow
Slow = Callable[[float], None]


def test_a_grid_of_images(page: Page, plain: Client) -> None:
    """They are those that a plain client gets, with the mark below them and the notice in the file."""
    fill(page, "generate-seeds", "3, 5, 8, 13")
    press(page, "generate-run")
    shown = made(page, "generate-grid", 4)
    wait_for_words(page, "generate-words", r"^4 synthetic slices in [\d.]+ s")
    assert [figure.seed for figure in shown] == [3, 5, 8, 13]
    for figure, image in zip(shown, plain.generate(seeds=[3, 5, 8, 13]).images, strict=True):
        np.testing.assert_array_equal(figure.pixels, picture_of(image))
        assert figure.bears_the_mark
        assert f"seed {figure.seed}" in figure.caption
        assert NOTICE.encode() in figure.png
        assert "Synthetic" in figure.alt


def test_every_field_of_the_form_is_heard(page: Page, plain: Client) -> None:
    choose(page, "generate-preset", "Custom")
    choose(page, "generate-timesteps", "Karras")
    choose(page, "generate-decoder", "Tiny decoder")
    ask(page, "3", steps=6, sampler="UniPC")
    [shown] = made(page, "generate-grid", 1)
    how = {"sampler": "unipc", "steps": 6, "timestep_grid": "karras", "decoder": "tiny"}
    expected = plain.generate(seeds=[3], **how)
    np.testing.assert_array_equal(shown.pixels, picture_of(expected.images[0]))
    with Image.open(io.BytesIO(shown.png)) as picture:
        assert {name: picture.text[name] for name in ("timestep_grid", "decoder")} == {
            "timestep_grid": "karras",
            "decoder": "tiny",
        }


def test_a_grid_that_the_server_lacks_is_refused_in_its_words(page: Page) -> None:
    choose(page, "generate-preset", "Custom")
    choose(page, "generate-timesteps", "Aligned")
    ask(page, "3")
    wait_for_words(page, "generate-words", "^timestep_grid is 'aligned'")


def test_previews_change_while_it_runs(page: Page, slow: Slow) -> None:
    """With progress and the time that is left."""
    slow(0.3)
    ask(page, "1, 2", steps=20)
    seen: dict[int, bytes] = {}
    texts = set()

    def enough() -> bool:
        for figure in figures(page, "generate-grid", "preview"):
            assert re.search(r"step \d+ of 20", figure.caption)
            assert figure.bears_the_mark
            assert figure.data["source"] == "latent"
            seen.setdefault(figure.step, figure.png) if figure.seed == 1 else None
        texts.add(words(page, "generate-progress"))
        return len(seen) > 3 and any(re.search(r"step \d+ of 20 · about \d+ s left", text) for text in texts)

    wait_until(enough, f"no previews with time left: {texts}", PATIENCE)
    assert len(set(seen.values())) == len(seen), "each step has its own picture"
    slow(0)
    made(page, "generate-grid", 2)
    assert figures(page, "generate-grid", "preview") == []


def test_stop_ends_the_work_within_a_step(page: Page, toy: TritonServer, slow: Slow) -> None:
    before = gauge(toy, "mri_ldm_cancelled_rows_total")
    slow(0.5)
    ask(page, "0-3", steps=1000)
    wait_for_figures(page, "generate-grid", 4, "preview")
    press(page, "generate-stop")
    stopped = wait_for_words(page, "generate-words", r"^Stopped at step (\d+) of 1000; the server has dropped the rest")
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
    wait_for_figures(page, "generate-grid", 4, "preview")
    page.close()
    wait_until(lambda: gauge(toy, "mri_ldm_cancelled_rows_total") - before == 4, "the work goes on", PATIENCE)
    wait_until_idle(toy)


def test_a_wrong_value_is_a_sentence(page: Page, toy: TritonServer) -> None:
    """Beside the form, which stays as it was; nothing is sent."""
    before = streamed(toy)
    for seeds, steps, says in (
        ("7", 0, r"steps must be from 1 to 1000, not 0\.$"),
        ("7", 5000, r"steps must be from 1 to 1000, not 5000\.$"),
        ("seven", 4, "whole number such as 42, not “seven”"),
        ("", 4, "^No seed is given"),
        ("9-2", 4, "The range 9-2 ends before it begins"),
        ("0-64", 4, "more than 64 seeds"),
    ):
        ask(page, seeds, steps=steps)
        wait_for_words(page, "generate-words", says)
        assert field(page, "generate-seeds").input_value() == seeds
    assert streamed(toy) == before
    assert figures(page, "generate-grid") == []


def test_a_busy_server_is_asked_again(
    page: Page, raw_toy: triton.InferenceServerClient, toy: TritonServer, slow: Slow
) -> None:
    slow(0.4)
    raw_toy.start_stream(lambda result, error: None)
    for _ in range(2):  # 24 s of work each; one row less would be 3 s less
        raw_toy.async_stream_infer("mri_ldm_stream", tensors(seed=[*range(8)], steps=[60] * 8))
    wait_for_rows(toy, 8, "waiting")
    ask(page, "5", steps=2)
    wait_for_words(page, "generate-words", r"no room now.*again in \d+ s")
    raw_toy.stop_stream(cancel_requests=True)
    slow(0)
    assert [figure.seed for figure in made(page, "generate-grid", 1)] == [5]
    wait_for_words(page, "generate-words", "^1 synthetic slice in")


def test_two_tabs_at_once_show_their_own(visitor: Visitor, address: str, toy: TritonServer, slow: Slow) -> None:
    slow(0.3)
    tabs = [open_page(visitor, address) for _ in range(2)]
    for page, seeds in zip(tabs, ("1, 2", "11, 12"), strict=True):
        ask(page, seeds, steps=100)
    wait_for_rows(toy, 4)
    slow(0)
    for page, seeds in zip(tabs, ([1, 2], [11, 12]), strict=True):
        assert [figure.seed for figure in made(page, "generate-grid", 2)] == seeds
        assert [figure.seed for figure in figures(page, "generate-grid")] == seeds


def test_files_as_other_programs_read_them(page: Page, plain: Client, tmp_path: Path) -> None:
    ask(page, "4, 9", steps=3)
    made(page, "generate-grid", 2)
    images = plain.generate(seeds=[4, 9], steps=3).images

    folder = unpacked(download(page, "generate", "PNG", tmp_path))
    pictures = [Image.open(path) for path in sorted(folder.rglob("slice*.png"))]
    np.testing.assert_array_equal([upright(np.asarray(each)) for each in pictures], levels(images, 255))
    assert {each.info["Description"] for each in pictures} == {NOTICE}
    [record] = folder.rglob("provenance.json")
    said = json.loads(record.read_text())
    assert [each["seed"] for each in said["images"]] == [4, 9]
    assert plain.info().model_digest in record.read_text()

    folder = unpacked(download(page, "generate", "NIfTI", tmp_path))
    volumes = [nibabel.load(path) for path in sorted(folder.rglob("*.nii.gz"))]
    np.testing.assert_array_equal([each.get_fdata(dtype=np.float32)[:, :, 0] for each in volumes], images)
    assert NOTICE in volumes[0].header.extensions[0].get_content().decode()

    folder = unpacked(download(page, "generate", "DICOM", tmp_path))
    objects = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    np.testing.assert_array_equal([upright(each.pixel_array) for each in objects], levels(images, 65535))
    assert {each["SyntheticData"].value for each in objects} == {"YES"}


def test_one_image_comes_as_one_file(page: Page, plain: Client, tmp_path: Path) -> None:
    ask(page, "12", steps=3)
    made(page, "generate-grid", 1)
    path = download(page, "generate", "16-bit PNG", tmp_path)
    assert path.name == "slice_seed000000012_16bit.png"
    with Image.open(path) as picture:
        [image] = plain.generate(seeds=[12], steps=3).images
        np.testing.assert_array_equal(upright(np.asarray(picture)), levels(image, 65535))
        assert picture.info["Description"] == NOTICE


def streamed(server: TritonServer) -> list[str]:
    """Rows and errors of the streaming model, as its metrics count them."""
    wait_until_idle(server)
    lines = metrics_text(server).splitlines()
    counted = ("mri_ldm_errors_total{", "mri_ldm_started_rows_total{")
    return [line for line in lines if line.startswith(counted) and 'model="mri_ldm_stream"' in line]


def levels(images: npt.NDArray[np.float32], largest: int) -> npt.NDArray[np.int64]:
    """Grey levels by the formula of docs/formats.md."""
    return np.rint(np.clip(images, 0, 1) * np.float32(largest)).astype(np.int64)


def upright(picture: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Rows from anterior to posterior as [x to the right, y to anterior]."""
    return picture[::-1, ::-1].T.astype(np.int64)
