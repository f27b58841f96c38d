"""Files from the studio, as other programs read them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import Page

from brats_ldm_client import Client
from brats_ldm_client.pictures import NOTICE
from support.studio import ask, choose, made, press, wait_for_words

pytestmark = pytest.mark.slow
SEEDS = [4, 9]


def levels(image: npt.NDArray[np.float32], largest: int) -> npt.NDArray[np.int64]:
    """Grey levels by the formula of docs/formats.md."""
    return np.rint(np.clip(image, 0, 1) * np.float32(largest)).astype(np.int64)


def upright(picture: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Rows from anterior to posterior as [x to the right, y to anterior]."""
    return picture[::-1, ::-1].T.astype(np.int64)


def download(page: Page, folder: Path, format: str, where: str = "generate") -> Path:
    """The file that the browser gets for a format."""
    choose(page, f"{where}-format", format)
    with page.expect_download() as waiting:
        press(page, f"{where}-download")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def unpacked(path: Path) -> Path:
    folder = path.with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def finished(page: Page) -> Page:
    ask(page, "4, 9", steps=3)
    made(page, "generate-grid", 2)
    return page


def test_several_images_come_with_their_record(finished: Page, plain: Client, downloads: Path) -> None:
    generation = plain.generate(seeds=SEEDS, steps=3)
    folder = unpacked(download(finished, downloads, "PNG"))
    for seed, image in zip(SEEDS, generation.images, strict=True):
        [path] = folder.rglob(f"*seed{seed:09d}.png")
        with Image.open(path) as picture:
            np.testing.assert_array_equal(upright(np.asarray(picture)), levels(image, 255))
            assert picture.info["Description"] == NOTICE
    [record] = folder.rglob("provenance.json")
    said = json.loads(record.read_text())
    assert plain.info().model_digest in json.dumps(said)
    assert [image["seed"] for image in said["images"]] == SEEDS


def test_nifti(finished: Page, plain: Client, downloads: Path) -> None:
    folder = unpacked(download(finished, downloads, "NIfTI"))
    volumes = [nibabel.load(path) for path in sorted(folder.rglob("*.nii.gz"))]
    pixels = [volume.get_fdata(dtype=np.float32)[:, :, 0] for volume in volumes]
    np.testing.assert_array_equal(pixels, plain.generate(seeds=SEEDS, steps=3).images)
    assert NOTICE in volumes[0].header.extensions[0].get_content().decode()


def test_dicom(finished: Page, plain: Client, downloads: Path) -> None:
    folder = unpacked(download(finished, downloads, "DICOM"))
    objects = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    expected = [levels(image, 65535) for image in plain.generate(seeds=SEEDS, steps=3).images]
    np.testing.assert_array_equal([upright(each.pixel_array) for each in objects], expected)
    assert {each["SyntheticData"].value for each in objects} == {"YES"}


def test_one_image_comes_as_one_file(page: Page, plain: Client, downloads: Path) -> None:
    ask(page, "12", steps=3)
    made(page, "generate-grid", 1)
    wait_for_words(page, "generate-words", "1 synthetic slice")
    path = download(page, downloads, "16-bit PNG")
    assert path.name == "slice_seed000000012_16bit.png"
    with Image.open(path) as picture:
        np.testing.assert_array_equal(
            upright(np.asarray(picture)), levels(plain.generate(seeds=[12], steps=3).images[0], 65535)
        )
        assert picture.info["Description"] == NOTICE
