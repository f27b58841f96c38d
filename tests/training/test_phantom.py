"""The phantom data: readable by MONAI, deterministic, labelled honestly, never mixed with other data."""

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from support.common import PHANTOM_SEED
from training.phantom import COLIN27, ICBM152, NOTICE, TASK, write_dataset
from training.phantom_template import colin27
from training.phantom_volume import smooth_field

pytestmark = pytest.mark.slow

SEED = PHANTOM_SEED  # its first volumes have a tumour with all three labels


def read(folder, kind, number):
    return nib.load(folder / kind / f"BRATS_{number:03d}.nii.gz")


@pytest.fixture(scope="module", params=[None, Path(sys.prefix) / "ch2better.nii.gz"], ids=["icbm152", "colin27"])
def template(request):
    return request.param


@pytest.fixture(scope="module")
def folder(template, phantom, tmp_path_factory):
    if template is None:
        return phantom / TASK
    return write_dataset(tmp_path_factory.mktemp("colin27"), volumes=2, seed=SEED, colin27=template)


def test_geometry_is_that_of_brats(folder):
    image, label = read(folder, "imagesTr", 1), read(folder, "labelsTr", 1)
    assert (image.shape, image.get_data_dtype()) == ((240, 240, 155, 4), np.int16)
    assert (label.shape, label.get_data_dtype()) == ((240, 240, 155), np.uint8)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_array_equal(image.header.get_zooms()[:3], (1, 1, 1))
    assert bytes(image.header["descrip"]).startswith(NOTICE.encode())
    assert "SYNTHETIC" in NOTICE


def test_axes_point_right_anterior_superior(folder):
    """A flipped axis would train a model on upside-down or back-to-front heads without any error."""
    brain = np.asarray(read(folder, "imagesTr", 1).dataobj[..., 0]) > 0
    low, middle, high = (brain[:, :, z].sum() for z in (15, 75, 126))
    assert middle > high > 1000  # the slices that training keeps, 27 to 126, all hold brain
    assert brain[:, :, 27].sum() > 1000
    assert middle > low
    lowest = int(np.flatnonzero(brain.any((0, 1)))[0])
    behind = np.argwhere(brain[:, :, lowest : lowest + 8])[:, 1].mean()
    assert behind < 110  # the lowest brain is cerebellum and brain stem, behind the middle of the array


def test_background_is_exactly_zero_and_the_same_in_every_channel(folder):
    image = np.asarray(read(folder, "imagesTr", 1).dataobj)
    assert image.min() == 0
    brain = image[..., 0] > 0
    assert 1.0e6 < brain.sum() < 2.3e6  # mm3; adult brains with ventricles lie within
    for channel in range(1, 4):
        np.testing.assert_array_equal(image[..., channel] > 0, brain)
    assert not brain[[0, -1]].any()
    assert not brain[:, [0, -1]].any()


def test_lesions_are_labelled_and_bright_where_they_should_be(folder):
    image = np.asarray(read(folder, "imagesTr", 1).dataobj).astype(np.float32)
    label = np.asarray(read(folder, "labelsTr", 1).dataobj)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    flair, t1, t1gd, _ = np.moveaxis(image, -1, 0)
    healthy = (label == 0) & (flair > 0)
    white = healthy & (t1 > np.percentile(t1[healthy], 75))  # white matter is the brightest tissue in T1w
    assert np.median(flair[label == 1]) > 1.3 * np.median(flair[white])
    assert np.median(t1gd[label == 3]) > 1.15 * np.median(t1gd[white])
    assert np.median(t1gd[label == 2]) < np.median(t1gd[white])


def test_flair_has_dark_csf_and_grey_brighter_than_white(folder):
    """T1w ranks CSF < grey < white, so its quantiles find the tissues without the generator's own maps."""
    image = np.asarray(read(folder, "imagesTr", 2).dataobj).astype(np.float32)
    label = np.asarray(read(folder, "labelsTr", 2).dataobj)
    flair, t1 = (image[..., c][(label == 0) & (image[..., 0] > 0)] for c in (0, 1))
    dark, low, high, bright = np.percentile(t1, (5, 30, 50, 80))
    csf, grey, white = (np.median(flair[part]) for part in (t1 < dark, (t1 > low) & (t1 < high), t1 > bright))
    assert csf < 0.6 * white < white < grey


@pytest.mark.parametrize("section", ["training", "validation"])
def test_decathlon_dataset_reads_it(folder, section):
    from monai.apps import DecathlonDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

    keys = ["image", "label"]
    load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, "RAS", labels=None)])
    data = DecathlonDataset(folder.parent, TASK, section, load, download=False, val_frac=0.5, cache_num=0)
    assert len(data) == 1
    item = data[0]
    assert item["image"].shape == (4, 240, 240, 155)
    assert item["label"].shape == (1, 240, 240, 155)
    number = int(item["image"].meta["filename_or_obj"].removesuffix(".nii.gz")[-3:])
    stored = np.asarray(read(folder, "imagesTr", number).dataobj[..., 0])
    np.testing.assert_array_equal(np.asarray(item["image"][0]), stored)  # RAS already: nothing flips


def test_same_seed_same_bytes_and_a_shorter_run_is_a_prefix(folder, template, tmp_path):
    """A lost file of volume 1 comes back byte for byte in a run of another length; volume 2 is left alone."""
    copy, files = tmp_path / TASK, [f"{kind}/BRATS_001.nii.gz" for kind in ("imagesTr", "labelsTr")]
    shutil.copytree(folder, copy)
    for name in files:
        (copy / name).unlink()
    kept = copy / "imagesTr/BRATS_002.nii.gz"
    before = kept.stat().st_mtime_ns
    write_dataset(tmp_path, volumes=1, seed=SEED, colin27=template)
    for name in files:
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    assert kept.stat().st_mtime_ns == before
    assert json.loads((copy / "dataset.json").read_text())["numTraining"] == 1
    assert not list(copy.rglob(".*"))  # no half-written file left


def test_complete_volumes_are_not_made_again(folder, template, monkeypatch):
    monkeypatch.setattr("training.phantom_volume.make_volume", lambda *_: pytest.fail("made again"))
    assert write_dataset(folder.parent, volumes=2, seed=SEED, colin27=template) == folder
    monkeypatch.setattr("training.phantom_volume.make_volume", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the third is missing, so this run does generate
        write_dataset(folder.parent, volumes=3, seed=SEED, colin27=template)


def test_volumes_differ(folder):
    first, second = (np.asarray(read(folder, "imagesTr", n).dataobj[..., 0], np.float32) for n in (1, 2))
    assert ((first > 0) != (second > 0)).mean() > 0.005  # another shape, not only another noise
    assert first.max() != second.max()


def test_another_seed_in_the_same_folder_is_refused(folder, template):
    listing = (folder / "dataset.json").read_bytes()
    with pytest.raises(ValueError, match=f'"seed": {SEED},.*"seed": {SEED + 1},'):
        write_dataset(folder.parent, volumes=2, seed=SEED + 1, colin27=template)
    assert (folder / "dataset.json").read_bytes() == listing


def test_another_template_in_the_same_folder_is_refused(folder, template):
    other = None if template else Path(sys.prefix) / "ch2better.nii.gz"
    mine, wanted = (ICBM152, COLIN27) if other else (COLIN27, ICBM152)
    with pytest.raises(ValueError, match=f"{mine}.*not.*{wanted}"):
        write_dataset(folder.parent, volumes=2, seed=SEED, colin27=other)


def test_another_file_is_not_taken_for_colin27(phantom):
    with pytest.raises(ValueError, match=r"BRATS_001.nii.gz is not Colin27 at 0.5 mm: give ch2better.nii.gz"):
        colin27(phantom / TASK / "imagesTr/BRATS_001.nii.gz")
    with pytest.raises(ValueError, match=r"dataset\.json is no NIfTI file .*: give ch2better\.nii\.gz"):
        colin27(phantom / TASK / "dataset.json")


def test_real_data_is_never_written_into(tmp_path):
    real = tmp_path / TASK / "dataset.json"
    real.parent.mkdir()
    real.write_text("{}")
    with pytest.raises(ValueError, match="not a phantom"):
        write_dataset(tmp_path, volumes=1, seed=0)
    assert [path.name for path in real.parent.iterdir()] == ["dataset.json"]
    assert real.read_text() == "{}"


def test_a_record_lost_with_the_power_is_named(tmp_path):
    record = tmp_path / TASK / "phantom.json"
    record.parent.mkdir()
    record.touch()
    with pytest.raises(ValueError, match=rf"^{record} says nothing, not .*; use that or another --out"):
        write_dataset(tmp_path, volumes=1, seed=0)


@pytest.mark.parametrize(("volumes", "seed"), [(0, 0), (1, -1), (1, 2**64)])
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, volumes, seed):
    with pytest.raises(ValueError, match="need volumes"):
        write_dataset(tmp_path, volumes, seed)
    assert not list(tmp_path.iterdir())


def test_index_says_what_it_is(folder, template):
    index = json.loads((folder / "dataset.json").read_text())
    assert index["numTraining"] == len(index["training"]) == 2
    assert index["training"][1]["label"] == "./labelsTr/BRATS_002.nii.gz"
    assert index["modality"]["0"] == "FLAIR"
    assert NOTICE in index["description"]
    assert f"seed {SEED}," in index["description"]
    assert index["reference"] == (COLIN27 if template else ICBM152)


def test_smooth_field_has_unit_variance_everywhere():
    """B-splines of white noise are quieter between the nodes unless the basis rows are normalised."""
    field = smooth_field(np.random.default_rng(0), 6)
    spreads = [field[phase::6, phase::6, phase::6].std() for phase in range(6)]
    np.testing.assert_allclose(spreads, 1, atol=0.04)  # four standard errors of 27 000 correlated samples
