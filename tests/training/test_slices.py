"""Folders of slices: the client's formats, files that are something else, volumes of one name."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from brats_ldm_client._formats import image_files, stem
from brats_ldm_client.pictures import to_display
from training.decathlon import TASK
from training.evaluation import slices
from training.evaluation.slices import SliceError, read_slices
from training.pictures import save_picture


def test_the_clients_files_all_hold_the_same_slice(tmp_path) -> None:
    """The same image in each of the client's formats; a PNG is right to half a grey level."""
    image = np.random.default_rng(0).random((240, 240), np.float32)
    for name in ("png", "nifti", "npz"):
        (tmp_path / name).mkdir()
    save_picture(to_display(image), tmp_path / "png" / "slice_seed000000001.png")
    save_picture(to_display(image[:9, :9]), tmp_path / "png" / "contact_sheet.png")
    nib.save(nib.Nifti1Image(image[::-1, :, None], np.diag([-1, 1, 1, 1])), tmp_path / "nifti" / "one.nii.gz")
    np.savez_compressed(tmp_path / "npz" / "slices.npz", images=np.stack([image, image]), seeds=[1, 2])
    np.testing.assert_allclose(read_slices(tmp_path / "png").images, image[None], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(read_slices(tmp_path / "nifti").images, image[None])
    assert read_slices(tmp_path / "npz").names == ["slices.npz[0]", "slices.npz[1]"]
    np.testing.assert_array_equal(read_slices(tmp_path / "npz").images, [image, image])


def test_what_the_client_writes_is_read_with_its_precision(tmp_path) -> None:
    """Of all formats in one folder the most precise is read; sidecars and DICOM files are not in the way."""
    image = np.random.default_rng(0).random((240, 240), np.float32) * 0.9
    record = {"seed": 1, "sampler": "ddim", "steps": 50, "eta": 0.0}
    for format, precision in (("dicom", 0), ("png", 0.51 / 255), ("png16", 0.51 / 65535), ("nifti", 0)):
        for name, content in image_files(format, stem(1), image, record).items():
            (tmp_path / name).write_bytes(content)
        if format != "dicom":
            np.testing.assert_allclose(read_slices(tmp_path).images, image[None], atol=precision, err_msg=format)


def test_bad_folders_are_one_sentence(tmp_path) -> None:
    with pytest.raises(SliceError, match="is not a folder: give a folder of slices"):
        read_slices(tmp_path / "none")
    with pytest.raises(SliceError, match=r"holds no \.npz, \.nii\.gz or \.png file"):
        read_slices(tmp_path)
    path = tmp_path / "x.png"
    for picture, reason in ((Image.new("RGB", (240, 240)), "mode is RGB"), (Image.new("L", (256, 240)), "256, 240")):
        picture.save(path)
        with pytest.raises(SliceError, match=reason):
            read_slices(tmp_path)
    for values, reason in ((np.full((2, 240, 240), 700.0), "from 700 to 700"), (np.full((1, 240, 240), np.nan), "nan")):
        np.savez(tmp_path / "x.npz", images=values)
        with pytest.raises(SliceError, match=reason):
            read_slices(tmp_path)


def test_every_bad_file_of_a_folder_is_named_and_hidden_ones_are_not_read(tmp_path) -> None:
    """macOS leaves a ._ file beside each; a 2D NIfTI is a slice, and "axes don't match array" no answer."""
    image = np.random.default_rng(0).random((240, 240), np.float32)
    shapes = {"plane": image, "volume": image[:, :, None], "series": image[:, :, None, None]}
    for name, voxels in shapes.items():
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    for hidden in ("._plane.nii.gz", "._plane.npz"):
        (tmp_path / hidden).write_bytes(b"\0\5\26\7")
    result = read_slices(tmp_path)
    assert result.names == ["plane.nii.gz", "series.nii.gz", "volume.nii.gz"]
    np.testing.assert_array_equal(result.images, [image] * 3)

    wide = nib.Nifti1Image(image, np.diag([2, 1, 1, 1])).to_bytes()
    frames = nib.Nifti1Image(np.zeros((240, 240, 2, 2), np.float32), np.eye(4)).to_bytes()
    bad = {
        "cut": ((tmp_path / "plane.nii.gz").read_bytes()[:-8], "cannot be read: it is damaged"),
        "frames": (gzip.compress(frames), "cannot be read: its shape is (240, 240, 2, 2)"),
        "wide": (gzip.compress(wide), "cannot be read: its pixels are 2 x 1 mm, and 1 x 1 mm is needed"),
        "zero": (b"", "is empty, 0 bytes"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
    with pytest.raises(SliceError) as error:
        read_slices(tmp_path)
    first, *lines, last = str(error.value).splitlines()
    assert first == "4 files cannot be used:"
    for line, (name, (_, said)) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"  {tmp_path / name}.nii.gz {said}"), line
    assert last == slices.ADVICE

    for content, said in (
        (b"PK\x03\x04 torn", "it is no npz archive"),
        (b"<html>", "is a web page"),
        (b"", "is empty"),
    ):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(SliceError, match=rf"x\.npz .*{said}.*: slices are 240 x 240"):
            read_slices(tmp_path)


@pytest.mark.slow
def test_volumes_of_one_name_do_not_write_over_each_other(tmp_path, capsys) -> None:
    """Three volumes called flair.nii.gz were 300 slices of 3 volumes, and 100 in the folder."""
    entries = []
    for case in range(3):
        voxels = np.zeros((240, 240, 100, 1), np.int16)
        voxels[0, 0] = 1 + case * np.arange(100)[:, None]  # tells the cases apart once they are scaled
        path = tmp_path / TASK / f"case_{case}" / "flair.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
        entries.append({"image": f"case_{case}/flair.nii.gz"})
    (tmp_path / TASK / "dataset.json").write_text(json.dumps({"training": entries}))
    out = tmp_path / "out"
    assert slices.main(["--data", str(tmp_path), "--section", "training", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"300 slices of 3 training volumes: {out}\n"
    assert sorted(path.name for path in out.iterdir()) == [f"000{case}_case_{case}_flair.npz" for case in range(3)]
    corners = read_slices(out).images[:, 0, 0].reshape(3, 100)
    expected = [np.ones(100), *((1 + case * np.arange(100)) / (1 + case * 99) for case in (1, 2))]
    np.testing.assert_allclose(corners, expected, atol=2**-11)
