"""Label maps from files, and libraries from training data: axes, values, and errors that name what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from brats_ldm_client import InvalidRequest
from brats_ldm_client._cli import main
from brats_ldm_client.labels import LabelLibrary, make_library, read_labels, read_library
from brats_ldm_client.labels.library import central, filled, section_of
from brats_ldm_client.labels.maps import check_maps, digest
from support.label_maps import disc, lesion, library, save, task01
from training.decathlon import section_of as section_of_training

MAP = lesion(150, 90, 20)


def test_what_a_map_may_be() -> None:
    for array in (MAP, MAP[None], MAP[None, None], MAP.astype(np.int64), MAP.astype(np.int8).tolist()):
        maps = check_maps(array)
        assert (maps.dtype, maps.shape, maps.flags.c_contiguous) == (np.uint8, (1, 240, 240), True)
        assert (maps[0] == MAP).all()
    assert check_maps(MAP != 0).max() == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (MAP.astype(np.float32), r"labels must be integers of shape \(240, 240\) or \(n, 240, 240\), not float32"),
        (MAP[1:], r"not uint8 \(239, 240\)"),
        (np.zeros((0, 240, 240), np.uint8), r"not uint8 \(0, 240, 240\)"),
        (np.stack([MAP, 2 * MAP]), r"labels\[1, \d+, \d+\] is 6, which is no label: use 0 background, 1 edema, 2 non-"),
        (MAP.astype(np.int16) - 1, r"labels\[0, 0\] is -1, which is no label"),
        ("text", "must be integers"),
    ],
)
def test_what_a_map_may_not_be(wrong: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_maps(wrong)


def test_the_digest_is_that_of_the_bytes_in_c_order() -> None:
    import hashlib

    assert digest(MAP) == digest(np.asfortranarray(MAP)) == hashlib.sha256(MAP.tobytes()).hexdigest()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "ILP"])
def test_a_file_of_any_orientation_gives_the_same_map(tmp_path: Path, axes: str) -> None:
    volume = nibabel.Nifti1Image(np.stack([MAP, np.zeros_like(MAP), 3 * (MAP > 0)], axis=2).astype(np.int16), np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(volume.as_reoriented(turn), tmp_path / "turned.nii.gz")
    maps = read_labels(tmp_path / "turned.nii.gz")
    assert len(maps) == 2, "the slice between them has no lesion"
    assert (maps[0] == MAP).all()
    assert (maps[1] == 3 * (MAP > 0)).all()


@pytest.mark.parametrize("shape", [(240, 240), (240, 240, 1), (240, 240, 1, 1)])
def test_a_single_slice_is_taken_as_it_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for name, array in (("lesion", MAP), ("none", np.zeros_like(MAP))):
        (read,) = read_labels(save(tmp_path / f"{name}.nii", array.reshape(shape)))
        assert (read == array).all()


def test_a_scaled_file_has_the_values_that_its_header_says(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image((2 * MAP)[..., None], np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, tmp_path / "half.nii.gz")
    assert (read_labels(tmp_path / "half.nii.gz")[0] == MAP).all()


def test_a_folder_gives_its_files_by_name(tmp_path: Path) -> None:
    save(tmp_path / "b.nii.gz", MAP)
    save(tmp_path / "a.nii", np.zeros_like(MAP))
    save(tmp_path / "._a.nii", MAP)
    (tmp_path / "notes.txt").write_text("mine")
    made = library(3)
    np.savez_compressed(tmp_path / "c.npz", labels=made.labels, brain=made.brain)
    maps = read_labels(str(tmp_path))
    assert [int(each.sum()) for each in maps] == [0, int(MAP.sum()), *(int(each.sum()) for each in made.labels)]


def test_files_that_hold_no_labels(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(InvalidRequest, match=words) as error:
            read_labels(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    half = MAP.astype(np.float32) / 2
    refused(save(tmp_path / "half.nii.gz", half), r"has the value 0\.5, which is no label")
    refused(save(tmp_path / "four.nii.gz", MAP * 2), r"labels\[0, \d+, \d+\] is 4, which is no label|is 6, which is no")
    refused(save(tmp_path / "small.nii.gz", MAP[:200]), r"not int16 \(1, 200, 240\)")
    refused(save(tmp_path / "spaced.nii.gz", MAP, np.diag([0.5, 0.5, 1, 1])), r"pixels of 0\.5 x 0\.5 mm")
    refused(save(tmp_path / "more.nii.gz", np.stack([MAP] * 4).reshape(240, 240, 2, 2)), "has the shape")
    refused(save(tmp_path / "empty.nii.gz", np.zeros((240, 240, 5), np.uint8)), "has no lesion in its 5 slices")
    for name in ("text.nii.gz", "text.nii", "text.npz", "text.png"):
        (tmp_path / name).write_text("no image")
        refused(tmp_path / name, r"cannot be read|is no npz archive|is no file of labels")
    cut = (tmp_path / "half.nii.gz").read_bytes()[:-200]
    (tmp_path / "cut.nii.gz").write_bytes(cut)
    refused(tmp_path / "cut.nii.gz", r"cannot be read")
    np.savez(tmp_path / "images.npz", images=MAP)
    refused(tmp_path / "images.npz", "has no array labels: make a library with `brats-ldm labels`")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", r"holds no \.nii\.gz, \.nii or \.npz file")
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "missing.nii.gz")


def test_a_library_of_training_data(tmp_path: Path) -> None:
    """Five volumes of which one is held out, with three slices each that show a lesion."""
    data, seen = task01(tmp_path / "data"), []
    made = make_library(
        data, tmp_path / "new" / "library.npz", on_volume=lambda done, total: seen.append((done, total))
    )
    assert (len(made), seen[-1]) == (12, (8, 8))
    assert made.labels.any(axis=(1, 2)).all()
    assert (made.brain == disc(120, 120, 90)).all(), "the ventricle is a hole, and filled; FLAIR is found by its name"
    again = read_library(tmp_path / "new" / "library.npz")
    assert (again.sha256, len(again)) == (made.sha256, 12)
    with np.load(tmp_path / "new" / "library.npz") as archive:
        assert len(set(archive["volumes"].tolist())) == 4
    assert len(make_library(data, tmp_path / "all.npz", section="all")) == 15
    assert len(make_library(data / "Task01_BrainTumour", tmp_path / "held.npz", section="validation")) == 3


def test_the_same_seed_draws_the_same_slices(tmp_path: Path) -> None:
    data = task01(tmp_path / "data")
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert len(make_library(data, tmp_path / f"{name}.npz", 5, seed=seed)) == 5
        files.append((tmp_path / f"{name}.npz").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("depth", [155, 154, 104, 101, 100, 60, 1])
def test_only_the_slices_that_training_takes(depth: int) -> None:
    """Of 155 slices the 100 in the middle, as MONAI crops them."""
    from monai.transforms import CenterSpatialCrop

    slices = np.arange(depth)[:, None, None] + np.zeros((1, 242, 241), np.int16)
    expected = CenterSpatialCrop((100, 240, 240))(slices[None])[0]
    np.testing.assert_array_equal(central(slices, Path("volume")), expected)
    with pytest.raises(InvalidRequest, match=r"volume has slices of \(240, 239\) pixels: 240 x 240 or more are needed"):
        central(slices[:, :240, :239], Path("volume"))


def test_data_without_what_a_library_needs(tmp_path: Path) -> None:
    data, out = task01(tmp_path / "data", volumes=2), tmp_path / "library.npz"
    index = data / "Task01_BrainTumour" / "dataset.json"

    def refused(words: str, **more: object) -> None:
        with pytest.raises(InvalidRequest, match=words):
            make_library(data, out, **more)  # type: ignore[arg-type]
        assert not out.exists()

    refused(r"count is 0 and section 'training': give 1 or more", count=0)
    refused("lists no volume for the section validation", section="validation")
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "modality": {"0": "FLAIR"}, "training": content["training"][:1]}))
    assert make_library(data, tmp_path / "first.npz").brain.all(), "the first channel is 1 everywhere"
    index.write_text("{}")
    refused("has no list `training` of images and labels")
    index.write_text(json.dumps({"training": [{"image": "x.nii.gz", "label": "missing.nii.gz"}]}))
    with pytest.raises(FileNotFoundError):
        make_library(data, out)
    shutil.rmtree(data)
    refused("does not exist: --data is the folder that holds Task01_BrainTumour")


def test_a_library_is_maps_and_masks(tmp_path: Path) -> None:
    made = library(2)
    with pytest.raises(InvalidRequest, match=r"brain must be a mask of the shape of the labels, \(2, 240, 240\)"):
        LabelLibrary(made.labels, made.brain[:1])
    with pytest.raises(InvalidRequest, match="a brain is empty"):
        LabelLibrary(made.labels, np.zeros_like(made.brain))
    np.savez(tmp_path / "half.npz", labels=made.labels, brain=made.brain[:1])
    with pytest.raises(InvalidRequest, match=r"half\.npz holds no library: brain must be"):
        read_library(tmp_path / "half.npz")
    with pytest.raises(InvalidRequest, match="is no library: make one with `brats-ldm labels"):
        read_library(tmp_path)


def test_holes_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        mask = ndimage.gaussian_filter(random.random((60, 50)), 1.5) > 0.5
        np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("count", [1, 5, 50, 484])
def test_sections_are_those_of_training(count: int) -> None:
    for section in ("training", "validation"):
        assert section_of(count, section) == section_of_training(count, section)  # type: ignore[arg-type]
    assert sorted(section_of(count, "training") + section_of(count, "validation")) == section_of(count, "all")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "library.npz"
    words = ["labels", "--data", str(task01(tmp_path / "data")), "--out", str(out)]
    assert main([*words, "--count", "4", "--section", "all"]) == 0
    made = read_library(out)
    assert capsys.readouterr().out == f"4 label maps with their brains, sha256:{made.sha256}: {out}\n"
    assert main(["labels", "--data", str(tmp_path), "--out", str(out)]) == 1
    assert "dataset.json does not exist" in capsys.readouterr().err
    for wrong in (["--count", "0"], ["--out", "library.zip"]):
        with pytest.raises(SystemExit):
            main([*words, *wrong])
