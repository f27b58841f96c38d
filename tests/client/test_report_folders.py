"""The page of every kind of folder: its pictures, values and words against NumPy and against the folder."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from brats_ldm_client import PRESETS, Client, Generation, InvalidRequest, MissingPackage
from brats_ldm_client.bulk import FORMATS, make_all, model_of, plan_for
from brats_ldm_client.pictures import MARK, NOTICE, marked, to_display
from brats_ldm_client.report import write_report
from brats_ldm_client.testing import FakeTransport
from support.report_page import ReportPage, viewed_values

SIDE = 24


def image_of(seed: int) -> np.ndarray:
    """Values on both sides of [0, 1]."""
    return np.random.default_rng(seed).random((SIDE, SIDE), np.float32) * 1.4 - 0.2


def generate(seeds: list[int], **how: object) -> Generation:
    with Client(transport=FakeTransport(image_of)) as client:
        return client.generate(seeds=seeds, **how)


def report(folder: Path, **options: object) -> ReportPage:
    return ReportPage(write_report(folder, **options))


def foreign_png(folder: Path, name: str = "a.png") -> np.ndarray:
    folder.mkdir(exist_ok=True)
    rows = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    Image.fromarray(rows).save(folder / name)
    return rows


TOLERANCE = {"png": 0.5001 / 255, "png16": 0.5001 / 65535, "dicom": 0.5001 / 65535, "nifti": 0.0, "npz": 0.0}


@pytest.mark.parametrize("format", TOLERANCE)
def test_a_folder_of_generate(format: str, tmp_path: Path) -> None:
    made = generate([0, 1, 2, 9])
    made.save(tmp_path, format)
    page = report(tmp_path)
    assert page.outside == []
    assert f"{tmp_path.name}: 4 synthetic slices" in page.words
    assert NOTICE in page.words
    assert list(page.pictures) == ["seed 0", "seed 1", "seed 2", "seed 9"]
    for each, image, viewed in zip(page.pictures.values(), made.images, page.viewed["images"], strict=True):
        expected = np.clip(image, 0, 1) if TOLERANCE[format] else image
        np.testing.assert_allclose(viewed_values(viewed), expected, rtol=0, atol=TOLERANCE[format])
        assert viewed["mark"] == MARK
        assert (viewed["mm"], viewed["oriented"]) == ([1, 1], True)
        assert np.abs(each.astype(int) - marked(to_display(image))).max() <= 1  # of 16 bits: halves round otherwise
    assert page.value("seeds") == "0\N{EN DASH}2, 9"
    assert (page.value("sampler"), page.value("steps"), page.value("model")) == ("ddim", "50", "fake")
    assert page.value("weights") == "sha256:" + "0" * 64


def test_the_histogram_counts_every_pixel(tmp_path: Path) -> None:
    """Values in the middle of bins, so that rounding moves none, and beyond the bins."""
    made = generate([3, 4])
    made.images[:] = -0.25 + (np.random.default_rng(0).integers(-5, 160, made.images.shape) + 0.5) / 100
    made.images[0, 0, :2] = np.nan, np.inf
    made.save(tmp_path, "nifti")
    page = report(tmp_path)
    values = made.images[np.isfinite(made.images)]
    counts = np.histogram(values, 150, (-0.25, 1.25))[0]
    heights = [float(height) for height in re.findall(r"220v-([0-9.]+)h", page.text)]
    np.testing.assert_allclose(heights, np.sqrt(counts / counts.max()) * 212, atol=0.06)
    assert page.value("below -0.25") == f"{(values < -0.25).sum()} pixels"
    assert page.value("above 1.25") == f"{(values > 1.25).sum()} pixels"
    assert page.value("not finite") == "2 pixels"
    assert page.value("least and largest") == f"{values.min():.4g} and {values.max():.4g}"


def test_values_beyond_those_of_decoders_have_a_window_and_bins_of_their_own(tmp_path: Path) -> None:
    made = generate([3, 4])
    made.images[0, 0, 0] = 7.0
    made.save(tmp_path, "nifti")
    page = report(tmp_path)
    low = float(made.images.min())
    assert page.viewed["full"] == [low, 7.0]
    assert page.value(f"below {low - (7 - low) / 4:g}") == "0 pixels"
    assert page.value(f"above {7 + (7 - low) / 4:g}") == "0 pixels"


def test_of_several_formats_each_image_is_shown_once_from_its_values(tmp_path: Path) -> None:
    made = generate([5, 6])
    made.save(tmp_path, "png,png16,nifti,dicom,npz")
    generate([7]).save(tmp_path, "png")
    page = report(tmp_path)
    assert sorted(page.pictures) == ["seed 5", "seed 6", "seed 7"]
    exact = {image["label"]: image for image in page.viewed["images"]}
    np.testing.assert_array_equal(viewed_values(exact["seed 6"]), made.images[1])
    assert exact["seed 7"]["kind"] == "u1"


def test_an_archive_hides_no_image_that_was_made_otherwise(tmp_path: Path) -> None:
    generate([5, 6]).save(tmp_path, "npz")
    generate([5], steps=20).save(tmp_path, "png")
    page = report(tmp_path)
    assert len(page.viewed["images"]) == 3
    steps = [row[3] for row in page.rows if row[:1] in (["1"], ["2"])]
    assert steps == ["50", "20"]


def test_mixed_weights_are_said(tmp_path: Path) -> None:
    generate([1]).save(tmp_path)
    with Client(transport=FakeTransport(image_of, model_digest="sha256:" + "1" * 64)) as client:
        client.generate(seeds=[2]).save(tmp_path)
    page = report(tmp_path)
    assert "These images are of 2 different weights." in page.words
    assert ["1", "1", "1", "sha256:" + "0" * 64] in page.rows


def test_files_say_how_they_were_made_when_their_records_are_gone(tmp_path: Path) -> None:
    generate([1, 2]).save(tmp_path, "png,npz")
    generate([3]).save(tmp_path, "nifti,dicom")
    (tmp_path / "provenance.json").unlink()
    page = report(tmp_path)
    assert NOTICE in page.words
    assert page.value("seeds") == "1\N{EN DASH}3"


def bulk(folder: Path, formats: str, count: int = 7) -> None:
    with Client(transport=FakeTransport(image_of)) as client:
        plan = plan_for(model_of(client), count, formats, seed_base=10, shard_size=3, preset="fast")
        make_all(client, plan, folder)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_in_bulk(format: str, tmp_path: Path) -> None:
    bulk(tmp_path, format)
    page = report(tmp_path)
    assert f"{tmp_path.name}: 7 synthetic slices" in page.words
    assert list(page.pictures) == [f"seed {seed}" for seed in range(10, 17)]
    values = np.stack([image_of(seed) for seed in range(10, 17)])
    limit = {"webdataset": 0.5001 / 255, "png": 0.5001 / 255, "png16": 0.5001 / 65535, "dicom": 0.5001 / 65535}
    for image, viewed in zip(values, page.viewed["images"], strict=True):
        expected = np.clip(image, 0, 1) if format in limit else image
        np.testing.assert_allclose(viewed_values(viewed), expected, rtol=0, atol=limit.get(format, 0))
    # Of the values that the server sent, whatever the files hold of them.
    assert page.value("least and largest") == f"{values.min():.4g} and {values.max():.4g}"
    assert page.value("seeds") == "10\N{EN DASH}16"
    fast = PRESETS["fast"]
    assert (page.value("sampler"), page.value("steps")) == (fast.sampler, str(fast.steps))
    assert page.value("timestep_grid") == fast.timestep_grid


def test_a_run_in_bulk_that_goes_on(tmp_path: Path) -> None:
    bulk(tmp_path, "hdf5")
    (tmp_path / "shard-000001.json").unlink()
    (tmp_path / "shard-000002.h5").write_bytes(b"damaged")
    problems: list[str] = []
    page = report(tmp_path, on_problem=problems.append)
    assert list(page.pictures) == ["seed 10", "seed 11", "seed 12"]
    assert page.value("seeds") == "10\N{EN DASH}12, 16"
    assert problems[0] == "3 of 7 images are in shards that are not whole"
    assert problems[1].startswith("shard-000002.h5 cannot be read (")
    assert all(problem in page.words for problem in problems)


def test_a_run_is_read_in_the_best_format_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bulk(tmp_path, "hdf5,png")
    bulk(tmp_path / "one", "hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert {image["kind"] for image in report(tmp_path).viewed["images"]} == {"u1"}
    with pytest.raises(MissingPackage, match="h5py is not installed"):
        write_report(tmp_path / "one")


# --- other origins


def check_origin_is_open(page: ReportPage) -> None:
    assert "Origin not recorded" in page.words
    assert NOTICE not in page.words
    assert {image["mark"] for image in page.viewed["images"]} == {""}
    assert b"SYNTHETIC" not in page.text.split('<div class="viewer">')[0].encode()
    assert page.value("parameters") == "not recorded"


def test_pictures_of_other_origin(tmp_path: Path) -> None:
    rows = foreign_png(tmp_path)
    Image.fromarray(rows).convert("RGB").save(tmp_path / "grey in three colours.png")
    Image.fromarray(rows.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    page = report(tmp_path)
    check_origin_is_open(page)
    assert f"{tmp_path.name}: 3 slices" in page.words
    for picture in page.pictures.values():
        np.testing.assert_array_equal(picture, rows)  # as they are, and without a mark
    assert all(image["mm"] is None and not image["oriented"] for image in page.viewed["images"])
    assert "where the patient's right is, not all files say" in page.words


def test_a_scanners_nifti_volume(tmp_path: Path) -> None:
    """Its axes point to left, back and down; its values are in the hundreds."""
    volume = np.random.default_rng(0).integers(0, 900, (20, 24, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-2.0, -1.5, -4.0, 1.0])), tmp_path / "scan.nii")
    page = report(tmp_path)
    check_origin_is_open(page)
    assert list(page.pictures) == [f"scan.nii[{index}]" for index in range(5)]
    expected = volume[::-1, ::-1, ::-1].astype(np.float32)
    for index, image in enumerate(page.viewed["images"]):
        np.testing.assert_array_equal(viewed_values(image), expected[:, :, index])
        assert (image["mm"], image["oriented"]) == ([2.0, 1.5], True)
    low, high = page.viewed["full"]
    assert (low, high) == (volume.min(), volume.max())
    scaled = to_display((expected[:, :, 0] - np.float32(low)) / np.float32(high - low))
    np.testing.assert_array_equal(page.pictures["scan.nii[0]"], scaled)


def test_a_scanners_values_that_are_all_the_same(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8), 1000, np.float32), np.eye(4)), tmp_path / "flat.nii")
    page = report(tmp_path)
    assert page.viewed["full"] == [0.0, 1000.0]
    assert (page.pictures["flat.nii"] == 255).all()
    assert page.value("least and largest") == "1000 and 1000"


def test_a_sagittal_volume_has_its_own_slices(tmp_path: Path) -> None:
    """The first axis points to the front, the second up, the third to the right: as axial slices there would be 20."""
    volume = np.random.default_rng(0).random((10, 20, 3), np.float32)
    affine = np.array([[0, 0, 4, 0], [2, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scan.nii")
    page = report(tmp_path)
    assert list(page.pictures) == [f"scan.nii[{index}]" for index in range(3)]
    for index, image in enumerate(page.viewed["images"]):
        np.testing.assert_array_equal(viewed_values(image), volume[:, :, index])
        assert (image["mm"], image["oriented"]) == ([2.0, 1.5], False)
    assert "where the patient's right is, not all files say" in page.words


@pytest.mark.parametrize("synthetic", [True, False])
def test_another_programs_dicom_file_with_empty_elements(synthetic: bool, tmp_path: Path) -> None:
    """Also if it says that it is synthetic, its values are not levels of [0, 1]."""
    generate([1]).save(tmp_path / "ours", "dicom")
    data = pydicom.dcmread(next((tmp_path / "ours").glob("*.dcm")))
    del data.ContributingEquipmentSequence
    data.SyntheticData = "YES" if synthetic else "NO"
    for name in ("PixelSpacing", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        setattr(data, name, None)
    data.save_as(tmp_path / "other.dcm")
    (image,) = report(tmp_path).viewed["images"]
    assert (image["mm"], image["oriented"], image["mark"]) == (None, False, MARK if synthetic else "")
    np.testing.assert_array_equal(viewed_values(image).T[::-1, ::-1], data.pixel_array)


def test_a_scanners_dicom_file(tmp_path: Path) -> None:
    generate([1]).save(tmp_path / "ours", "dicom")
    data = pydicom.dcmread(next((tmp_path / "ours").glob("*.dcm")))
    del data.SyntheticData, data.ContributingEquipmentSequence
    data.RescaleSlope, data.RescaleIntercept, data.PixelSpacing = 2, -10, [0.5, 0.75]
    data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # sagittal
    data.save_as(tmp_path / "scan.dcm")
    page = report(tmp_path)
    check_origin_is_open(page)
    (image,) = page.viewed["images"]
    assert (image["mm"], image["oriented"]) == ([0.75, 0.5], False)
    rows = viewed_values(image).T[::-1, ::-1]
    np.testing.assert_array_equal(rows, data.pixel_array.astype(np.float32) * 2 - 10)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", ">f4", "i2", "u1"])
def test_archives_of_other_origin(order: str, dtype: str, tmp_path: Path) -> None:
    images = np.asarray(np.random.default_rng(0).random((70, 6, 8)) * 200, dtype)
    np.savez(tmp_path / "volume.npz", images=np.asarray(images, order=order), slices=np.arange(70))
    page = report(tmp_path)
    check_origin_is_open(page)
    shown = [f"volume.npz[{place * 70 // 64}]" for place in range(64)]
    assert list(page.pictures) == shown
    label = page.viewed["images"][5]["label"]
    values = images[int(label[11:-1])] / (255 if dtype == "u1" else 1)
    np.testing.assert_allclose(viewed_values(page.viewed["images"][5]), values.astype(np.float32), rtol=1e-6)
    assert "Of all images." in page.words


def test_a_mixed_folder_says_how_many_are_synthetic(tmp_path: Path) -> None:
    generate([1, 2]).save(tmp_path)
    rows = foreign_png(tmp_path)
    page = report(tmp_path)
    assert "2 of 3 slices are recorded as synthetic" in page.words
    assert "made by" not in page.words
    np.testing.assert_array_equal(page.pictures["a.png"], rows)
    assert page.pictures["seed 1"].shape == marked(to_display(image_of(1))).shape


# --- what cannot be read


def damage(folder: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(folder / "colour.png")
    (folder / "text.png").write_text("no picture")
    np.savez(folder / "objects.npz", images=np.array([[["a"]]], dtype=object))
    (folder / "pickle.npz").write_bytes(b"\x80\x04K\x01.")
    np.savez(folder / "other.npz", weights=np.zeros(3))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2, 3), np.float32), np.eye(4)), folder / "film.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "film.nii.gz").read_bytes()[:60])
    (folder / "no.dcm").write_bytes(b"DICM")
    np.savez(folder / "empty.npz", images=np.zeros((3, 0, 4), np.float32))


def test_damaged_files_are_listed_and_the_others_shown(tmp_path: Path) -> None:
    generate([1]).save(tmp_path)
    damage(tmp_path)
    problems: list[str] = []
    page = report(tmp_path, on_problem=problems.append)
    assert list(page.pictures) == ["seed 1"]
    names = {path.name for path in tmp_path.iterdir()} - {"provenance.json", "contact_sheet.png", "report.html"}
    names = {name for name in names if not name.startswith("slice_")}
    assert {problem.split()[0] for problem in problems} == names
    assert len(problems) == len(names)
    assert all(problem in page.words for problem in problems)
    assert "which could be read" in page.words
    assert "evenly spread" not in page.words, "no image was left out by choice"


def test_an_archive_whose_end_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.float32))
    header = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(header.replace(b"(4, 8, 8)", b"(9, 8, 8)"))
    with pytest.raises(InvalidRequest, match=r"a\.npz cannot be read \("):
        write_report(tmp_path)


def test_a_header_that_names_very_many_images_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("images.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**11, 4, 4)}
        np.lib.format.write_array_header_1_0(file, header)
    header = nibabel.Nifti2Header()
    header.set_data_shape((4, 4, 10**11))
    (tmp_path / "b.nii").write_bytes(header.binaryblock + bytes(100))
    with pytest.raises(InvalidRequest, match=r"a\.npz cannot be read \(its end is missing\); b\.nii .*end is missing"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, r"has no slices to read: give a folder of \.png"),
        (lambda folder: folder.rmdir(), "is not a folder"),
        (damage, r"has no slices to read: cut\.nii\.gz cannot be read \(Cannot work out file type of \"cut"),
    ],
)
def test_a_folder_with_nothing_to_read(prepare: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(InvalidRequest, match=words):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"images": 3}', '{"images": [{"file": 3}]}', "[" * 100_000])
def test_a_foreign_provenance_is_said(text: str, tmp_path: Path) -> None:
    foreign_png(tmp_path)
    (tmp_path / "provenance.json").write_text(text)
    page = report(tmp_path)
    check_origin_is_open(page)
    assert "provenance.json is damaged, or of another program" in page.words


def test_what_is_no_slice_is_left_alone(tmp_path: Path) -> None:
    generate([1]).save(tmp_path)
    (tmp_path / ".hidden.png").write_text("a companion file of macOS")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").touch()
    problems: list[str] = []
    assert list(report(tmp_path, on_problem=problems.append).pictures) == ["seed 1"]
    assert problems == []
    assert json.loads((tmp_path / "provenance.json").read_text())["images"][0]["file"] == "slice_seed000000001.png"
