"""Files of one image each, read back with the libraries that users have; DICOM is held to dciodvfy."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from benchmarks.harness.command import tool
from brats_ldm_client import BratsLDMError, MissingPackage, _formats
from brats_ldm_client.pictures import NOTICE, SOURCE_TYPE, to_display

DIGEST = "sha256:" + "0123456789abcdef" * 4
RECORD = {
    "synthetic": True,
    "seed": 42,
    "sampler": "ddim",
    "steps": 50,
    "eta": 0.0,
    "model_name": "brats_phantom_demo",
    "model_digest": DIGEST,
}
EXTREMES = (-(2**63), -1, 0, 2**31, 2**63 - 1)


def picture() -> np.ndarray:
    """A slice with values on both sides of [0, 1], and with what no display knows."""
    image = np.random.default_rng(0).random((240, 240), np.float32) * 1.4 - 0.2
    image[0, :3] = np.nan, np.inf, -np.inf
    return image


def write(folder: Path, format: str, image: np.ndarray | None = None, **changes: Any) -> Path:
    """The files of a format; returns the path of the one that holds the image."""
    record = {**RECORD, **changes}
    files = _formats.image_files(format, _formats.stem(record["seed"]), picture() if image is None else image, record)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(files))


@pytest.mark.parametrize("format", _formats.files_per_image)
def test_grid_and_decoder_stand_in_the_files_where_they_are_not_the_default(format: str) -> None:
    """An image that an older client would have asked for has the bytes that this client gave it."""

    def files(**more: str) -> list[bytes]:
        return [*_formats.image_files(format, "name", picture(), {**RECORD, **more}).values()]

    plain = files()
    assert files(timestep_grid="leading", decoder="full") == plain
    ours = files(timestep_grid="karras", decoder="tiny")
    assert ours != plain
    written = b"".join(gzip.decompress(each) if each[:2] == b"\x1f\x8b" else each for each in ours)
    assert b"karras" in written
    assert b"tiny" in written


@pytest.mark.parametrize("format", _formats.files_per_image)
def test_what_is_read_is_what_is_stored(format: str, tmp_path: Path) -> None:
    read, stored = _formats.read(write(tmp_path, format)), _formats.stored(format, picture())
    np.testing.assert_array_equal(read, stored)
    assert read.dtype == stored.dtype
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(_formats.shown(read), _formats.shown(stored))
    # A picture of 16-bit levels may differ from that of the values where those are halfway between two grey levels.
    assert np.abs(_formats.shown(read).astype(int) - to_display(picture())).max() <= 1


@pytest.mark.parametrize(("format", "largest"), [("png", 255), ("png16", 65535), ("dicom", 65535)])
def test_levels_are_the_values_as_stated(format: str, largest: int) -> None:
    """Rounded in float64 here and in float32 there, which can matter where a value is halfway."""
    image = picture()[1:]
    exact = np.clip(image.astype(np.float64), 0, 1) * largest
    assert np.abs(_formats.stored(format, image) - exact).max() < 0.51
    assert _formats.stored(format, picture())[0, :3].tolist() == [0, largest, 0]


@pytest.mark.parametrize("format", _formats.files_per_image)
def test_bytes_depend_on_the_image_and_how_it_was_made_alone(format: str) -> None:
    made = _formats.image_files(format, "one", picture(), RECORD)
    assert made == _formats.image_files(format, "one", picture(), {**RECORD, "versions": {"server": "2.51.0"}})
    for change in ({"seed": 43}, {"steps": 20}, {"model_digest": "sha256:" + "f" * 64}):
        other = _formats.image_files(format, "one", picture(), {**RECORD, **change})
        assert all(other[name] != made[name] for name in made), change


@pytest.mark.parametrize(("bits", "mode"), [(8, "L"), (16, "I;16")])
def test_png_states_its_scaling(bits: int, mode: str, tmp_path: Path) -> None:
    image = np.zeros((240, 240), np.float32)
    image[230, 5] = 1.0  # right and posterior: in the picture at the bottom left
    with Image.open(write(tmp_path, "png" if bits == 8 else "png16", image)) as read:
        text, rows = dict(read.text), np.asarray(read)
        assert read.mode in (mode, "I")  # older Pillows
    assert text["Scaling"] == f"value = level / {2**bits - 1}, clipped to [0, 1]"
    assert (text["Description"], text["DigitalSourceType"], text["seed"]) == (NOTICE, SOURCE_TYPE, "42")
    assert SOURCE_TYPE in text["XML:com.adobe.xmp"]
    assert rows[239 - 5, 239 - 230] == rows.max() == rows.sum() == 2**bits - 1


def test_pngs_of_8_and_16_bits_lie_side_by_side(tmp_path: Path) -> None:
    names = {name for format in _formats.files_per_image for name in _formats.file_names(format, "one")}
    assert names == {"one.png", "one_16bit.png", "one.nii.gz", "one.json", "one.dcm"}


def test_the_sidecar_of_nifti_has_fields_of_bids(tmp_path: Path) -> None:
    path = write(tmp_path, "nifti", seed=EXTREMES[0])
    fields = json.loads((tmp_path / path.name.replace(".nii.gz", ".json")).read_text())
    assert all(re.fullmatch("([A-Z][a-z]+)+|MR[A-Za-z]+", key) for key in fields), "BIDS spells fields so"
    assert (fields["Modality"], fields["SpatialReference"], fields["BodyPart"]) == ("MR", "orig", "BRAIN")
    (made_by,) = fields["GeneratedBy"]
    assert (made_by["Name"], made_by["Version"]) == ("brats_phantom_demo", DIGEST)
    assert fields["Description"].startswith(NOTICE)
    assert (fields["Synthetic"], fields["DigitalSourceType"]) == (True, SOURCE_TYPE)
    recorded = {key: fields[key] for key in ("Seed", "Sampler", "Steps", "Eta", "ModelDigest")}
    assert recorded == {"Seed": EXTREMES[0], "Sampler": "ddim", "Steps": 50, "Eta": 0.0, "ModelDigest": DIGEST}


@pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental")
def test_dicom_and_nifti_put_the_same_value_at_the_same_place(tmp_path: Path) -> None:
    """nibabel reads both. DICOM's axes point to the left and to the back of the patient, NIfTI's to right and front."""
    from nibabel.nicom.dicomwrappers import wrapper_from_data  # warns when it is imported

    image = np.clip(np.nan_to_num(picture()), 0, 1)
    data, volume = pydicom.dcmread(write(tmp_path, "dicom", image)), nibabel.load(write(tmp_path, "nifti", image))
    voxels = np.random.default_rng(1).integers(0, 240, (50, 2))
    for i, j in voxels:
        left, back, up, _ = wrapper_from_data(data).affine @ [i, j, 0, 1]
        x, y, z, _ = np.linalg.inv(volume.affine) @ [-left, -back, up, 1]
        assert (x % 1, y % 1, z) == (0, 0, 0)
        value = data.pixel_array[i, j] / 65535
        assert value == pytest.approx(image[int(x), int(y)], abs=0.51 / 65535)
    assert list(data.PixelSpacing) == [1, 1]


def test_dicom_says_that_it_is_synthetic_and_how_it_was_made(tmp_path: Path) -> None:
    data = pydicom.dcmread(write(tmp_path, "dicom"))
    assert data[0x0008, 0x001C].value == "YES"
    assert data.ImageComments == NOTICE
    assert "SYNTHETIC" in str(data.PatientName)
    assert (data.StudyDate, data.PatientBirthDate) == ("", "")
    assert all(words in data.DerivationDescription for words in (NOTICE, "seed=42", SOURCE_TYPE))
    (equipment,) = data.ContributingEquipmentSequence
    assert equipment.SoftwareVersions == DIGEST.removeprefix("sha256:")
    assert json.loads(equipment.ContributionDescription) == {**RECORD, "digital_source_type": SOURCE_TYPE}
    (mapping,) = data.RealWorldValueMappingSequence
    values = data.pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    expected = np.clip(np.nan_to_num(picture()), 0, 1).T[::-1, ::-1]
    np.testing.assert_allclose(values, expected, atol=0.51 / 65535)
    assert data.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian


def test_identifiers_of_dicom_are_those_of_the_content(tmp_path: Path) -> None:
    def identifiers(image: np.ndarray | None = None, **changes: Any) -> tuple[str, str, str]:
        data = pydicom.dcmread(write(tmp_path, "dicom", image, **changes))
        uids = (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID)
        assert all(uid.is_valid and re.fullmatch(r"2\.25\.[1-9]\d*", uid) for uid in uids)
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        return uids

    study, series, one = identifiers()
    assert identifiers() == (study, series, one)
    assert identifiers(seed=43)[:2] == (study, series)
    # Another start noise, or another processor: other pixels with the same record must not pass for the same object.
    others = [identifiers(seed=43)[2], identifiers(picture()[::-1])[2]]
    for change in (
        {"steps": 20},
        {"eta": 0.5},
        {"timestep_grid": "karras"},
        {"decoder": "tiny"},
        {"sampler": "ddpm"},
        {"model_digest": "sha256:" + "f" * 64},
    ):
        changed = identifiers(**change)
        assert not {study, series} & set(changed)
        others.append(changed[2])
    assert len({one, *others}) == 1 + len(others)


# Debian's dciodvfy of 2022 does not know the attribute Synthetic Data, which came into the standard later. And it wants
# a date for a DICOMDIR; an image without a patient has none, and an invented one would be wrong.
KNOWN = re.compile(r"\(0008,001c\)|</Study(Date|Time)\(0008,00[23]0\)> - .* would be needed to build DICOMDIR$", re.I)


@pytest.mark.parametrize("record", [*({"seed": seed} for seed in EXTREMES), {"model_name": "\\ä" * 40}])
def test_dciodvfy_finds_nothing(record: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, "dicom", **record)
    done = subprocess.run([tool("dciodvfy"), "-new", path], capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "MRImage" in lines
    assert [line for line in lines if line != "MRImage" and not KNOWN.search(line)] == []


def test_dcentvfy_finds_that_the_images_of_a_series_agree(tmp_path: Path) -> None:
    paths = [write(tmp_path, "dicom", seed=seed) for seed in EXTREMES]
    done = subprocess.run([tool("dcentvfy"), *paths], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingPackage, match=re.escape("pip install pydicom")) as caught:
        _formats.formats_of("png,dicom")
    assert isinstance(caught.value, BratsLDMError)
    assert _formats.formats_of("png,png16,nifti,npz") == ("png", "png16", "nifti", "npz")
