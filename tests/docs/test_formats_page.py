"""docs/formats.md: its lines of Python read what the client writes, and its table is that of the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brats_ldm_client import Generation, _formats
from brats_ldm_client._formats.levels import scaling
from brats_ldm_client.pictures import as_rows
from support.common import ROOT
from support.label_maps import lesion

PAGE = (ROOT / "docs" / "formats.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
READERS = dict(zip(("png", "nifti", "dicom", "npz"), EXAMPLES, strict=False))
"""The page has them in this order; the animation comes last."""


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).random((240, 240), np.float32)


@pytest.fixture
def slices(image: np.ndarray, tmp_path: Path) -> Path:
    record = {"seed": 42, "model_name": "demo", "model_digest": "sha256:" + "ab" * 32}
    seeds, images = np.array([41, 42]), np.stack([image[::-1], image])
    labels = np.stack([lesion(140, 100, 12), lesion(120, 100, 12)])
    made = Generation(images, seeds, 50, "ddim", 0.0, ({**record, "seed": 41}, record), seconds=1.0, labels=labels)
    made.save(tmp_path / "slices", _formats.FORMATS)
    return tmp_path


def read(code: str) -> np.ndarray:
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    return names["image"]


@pytest.mark.parametrize("format", READERS)
def test_the_lines_that_read_a_file(
    format: str, image: np.ndarray, slices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(slices)
    if format in ("nifti", "npz"):
        np.testing.assert_array_equal(read(READERS[format]), image)
    else:
        atol = 0.51 / (255 if format == "png" else 65535)
        np.testing.assert_allclose(read(READERS[format]), as_rows(image), atol=atol)


@pytest.mark.slow
def test_monai_reads_the_pairs(
    slices: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for block in EXAMPLES if "monai" in block)
    monkeypatch.chdir(slices)
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("torch.Size([1, 240, 240, 1]) ")


@pytest.mark.parametrize("format", [*_formats.files_per_image, "task01"])
def test_the_table_of_labels(format: str) -> None:
    (row,) = re.findall(rf"^\| (`labels\w*/.*) \| .*`{format}`.* \|$", PAGE, re.MULTILINE)
    name = _formats.file_names(format, _formats.stem(42), labels=True)[-1]
    assert f"`{name.removeprefix('Task01_BrainTumour/')}`" in row


def test_what_the_page_says_of_16_bits(image: np.ndarray, slices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(slices)
    code = READERS["png"].replace("42.png", "42_16bit.png").replace("255", "65535")
    np.testing.assert_allclose(read(code), as_rows(image), atol=0.51 / 65535)


def test_the_table_has_the_formats_with_their_files_and_scaling() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*_.*|`slices.npz.*) \|$", PAGE, re.MULTILINE))
    assert list(rows) == list(_formats.FORMATS)
    for format in _formats.files_per_image:
        first, *others = _formats.file_names(format, _formats.stem(42))
        assert f"`{first}`" in rows[format]
        assert all(f"`{Path(name).suffix}`" in rows[format] for name in others)
    for format, bits in (("png", 8), ("png16", 16), ("dicom", 16)):
        assert f"{bits} bits | {scaling(bits)}" in rows[format]


def test_the_animation_on_the_page_is_small_and_moves() -> None:
    path = ROOT / "docs" / "denoising.webp"
    assert path.stat().st_size < 400_000
    with Image.open(path) as read:
        assert read.n_frames == 51
        assert "research use only" in read.getexif()[0x010E]
