"""The PNG that the server makes, read by Pillow: pixels and text are those of the client's PNG of the same image."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from brats_ldm_client import pictures
from brats_ldm_client._formats import image_files
from mri_ldm import png as served
from support.common import ROOT

RECORD: dict[str, Any] = {
    "synthetic": True,
    "seed": -(2**63),
    "sampler": "ddim",
    "steps": 50,
    "eta": 0.1,
    "model_name": "demo",
    "model_digest": "sha256:" + "ab" * 32,
}
ODD = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, -1e38, 1e38, 1e-40, 1.0, 0.5, 0.5 / 255, 1.5 / 255], np.float32)


def read(data: bytes) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def random(shape: tuple[int, int] = (240, 240)) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.2, 1.2, shape).astype(np.float32)


def test_a_reader_gets_the_clients_pixels() -> None:
    image = random()
    image[5, 7 : 7 + len(ODD)] = ODD
    shown = read(served.png(image, RECORD))
    assert (shown.format, shown.mode, shown.size) == ("PNG", "L", (240, 240))
    assert np.array_equal(np.asarray(shown), pictures.to_display(image))


@pytest.mark.parametrize("value", ODD)
def test_an_odd_value_is_shown_as_by_the_client(value: np.float32) -> None:
    image = np.full((3, 2), value, np.float32)
    assert np.array_equal(served.to_display(image), pictures.to_display(image))


def test_every_level_and_every_half_between_two() -> None:
    image = (np.arange(512, dtype=np.float32) / np.float32(510)).reshape(32, 16)
    shown = np.asarray(read(served.png(image, RECORD)))
    assert np.array_equal(shown, pictures.to_display(image))
    assert np.unique(shown).size == 256


def test_anterior_is_up_and_the_patients_right_on_the_left() -> None:
    image = np.zeros((5, 4), np.float32)
    image[-1, -1] = 1  # farthest to the right, farthest to anterior
    shown = np.asarray(read(served.png(image, RECORD)))
    assert shown.shape == (4, 5)
    assert np.argwhere(shown).tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["demo", "Gehirn-Größe", "脳"])
def test_its_text_is_the_clients(name: str) -> None:
    """Latin-1 and other names of a model stand in chunks of two kinds."""
    record = RECORD | {"model_name": name}
    text = read(served.png(random(), record)).text  # type: ignore[attr-defined]
    assert text == read(image_files("png", "one", random(), record)["one.png"]).text  # type: ignore[attr-defined]
    assert text["Description"] == pictures.NOTICE
    assert text["DigitalSourceType"] == pictures.SOURCE_TYPE
    assert (text["seed"], text["synthetic"], text["model_name"]) == (str(-(2**63)), "true", name)
    assert pictures.SOURCE_TYPE in text["XML:com.adobe.xmp"]


def test_only_what_the_image_depends_on_is_in_it() -> None:
    """So that two servers, of other versions, make the same file."""
    assert served.png(random(), RECORD) == served.png(random(), RECORD | {"versions": {"python": "3.11"}})


def test_a_slice_takes_about_as_many_bytes_as_the_clients() -> None:
    """A slice of the demo weights. Seen: 6 % more."""
    with Image.open(ROOT / "docs" / "contact_sheet.png") as sheet:
        levels = np.asarray(sheet, np.float32)[pictures.GAP :, pictures.GAP :][:240, :240] / 255
    image = levels[::-1, ::-1].T
    clients = pictures.png(pictures.to_display(image), RECORD)
    assert len(served.png(image, RECORD)) < 1.15 * len(clients)
