"""Volumes as people have them: the meaning and the geometry of a file are looked at as training will see it."""

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.apps import DecathlonDataset
from monai.transforms import Compose

from support.common import SMALL, blocks, dataset
from training.config import Config, ConfigError
from training.data import check_headers, open_volumes, volume_transforms
from training.decathlon import MODALITIES, TASK, DataError, channel_of, read_index, volume_names
from training.train_diffusion import with_autoencoder_of

VOXELS = np.random.default_rng(0).random((32, 32, 4, 2), np.float32)


def nifti(voxels: np.ndarray = VOXELS, affine: np.ndarray | None = None) -> bytes:
    return bytes(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_bytes())


def patched(layout: str, offset: int, *values: float) -> bytes:
    """A sound file but for the header's fields at `offset`."""
    content = bytearray(nifti())
    struct.pack_into(layout, content, offset, *values)
    return bytes(content)


def with_units(affine: np.ndarray, units: str) -> bytes:
    image = nib.Nifti1Image(VOXELS, affine)
    image.header.set_xyzt_units(units)
    return bytes(image.to_bytes())


def write(folder: Path, content: bytes, name: str = "a.nii.gz") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


RGB = np.zeros((32, 32, 4, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
# What is in the file before it is compressed, and what is said of it.
HEADERS = {
    "2mm": (nifti(affine=np.diag([2, 2, 2, 1])), ": its voxels are 2 x 2 x 2 mm"),
    "half": (nifti(affine=np.diag([0.5, -0.5, 0.5, 1])), ": its voxels are 0.5 x 0.5 x 0.5 mm"),
    "thick": (nifti(affine=np.diag([1, 1, 5, 1])), ": its voxels are 1 x 1 x 5 mm (Right, Anterior, Superior), and 1"),
    "thick, stored S, R, A": (
        nifti(affine=np.eye(4)[[1, 2, 0, 3]] @ np.diag([5, 1, 1, 1])),
        ": its voxels are 1 x 1 x 5 mm",
    ),
    "centimetres": (with_units(np.eye(4), "meter"), ": its voxels are 1000 x 1000 x 1000 mm"),
    "two sizes": (patched("<f", 80, 2.0), ": its pixdim says voxels of 2 x 1 x 1 mm, and its affine 1 x 1 x 1 mm"),
    "NaN": (patched("<f", 280, np.nan), ": its affine is not finite: [[nan"),
    "singular": (patched("<4f", 296, 1, 0, 0, 0), ": its affine has no inverse: [[1.0, 0.0, 0.0, 0.0], [1.0,"),
    "offset": (patched("<f", 108, 0), ": its vox_offset is 0, inside the header: 352 or more is needed"),
    "type": (patched("<h", 70, 9999), " cannot be read: data code 9999 not recognized"),
    "qform": (patched("<2h3f", 252, 1, 0, 3, 3, 3), " cannot be read: w2 should be positive"),
    "axes": (patched("<h", 40, 9), " cannot be read: "),
    "negative": (patched("<h", 42, -5), ": it has the shape (-5, 32, 4, 2)"),
    "complex": (nifti(VOXELS.astype(np.complex64)), ": its voxels are of the type complex64, and one real number"),
    "colour": (nifti(RGB), ": its voxels are of the type RGB"),
    "2D": (nifti(VOXELS[:, :, 0, 0]), ": it has the shape (32, 32), and four axes are needed"),
    "5D": (nifti(VOXELS[..., None]), ": it has the shape (32, 32, 4, 2, 1), and four axes are needed"),
    "no slices": (nifti(VOXELS[:, :, :0]), ": it has the shape (32, 32, 0, 2), at least (32, 32, 4, 1) is needed"),
    "twice": (gzip.compress(nifti()), " is compressed twice: unpack it once"),
}
# Files that are something else.
OTHERS = {
    "unpacked": (nifti(), " is not compressed by gzip, though its name ends in .gz"),
    "empty": (b"", " is empty, 0 bytes"),
    "page": (b"\n<!DOCTYPE html><html>", " is a web page, not the file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", " is a pointer of git-lfs"),
    "._companion": (b"\0\5\26\7" + bytes(100), " is a companion file of macOS"),
}
SOUND = {
    "almost": nifti(affine=np.diag([1.0005, 1, 1, 1])),
    "micrometres": with_units(np.diag([1000, 1000, 1000, 1]), "micron"),
    "slope of 0": patched("<2f", 112, 0, 0),
    "one channel": nifti(VOXELS[..., :1]),
    "no orientation": patched("<2h", 252, 0, 0),
}


def test_every_header_is_looked_at_and_all_are_told(tmp_path) -> None:
    """One report: the file, the number, and what is needed."""
    sound = [write(tmp_path, gzip.compress(content), f"{name}.nii.gz") for name, content in SOUND.items()]
    check_headers(sound, SMALL, 0)
    contents = {name: gzip.compress(content) for name, (content, _) in HEADERS.items()}
    contents |= {name: content for name, (content, _) in OTHERS.items()}
    bad = [write(tmp_path, content, f"{name}.nii.gz") for name, content in contents.items()]
    (tmp_path / "folder.nii.gz").mkdir()
    bad.append(write(tmp_path, gzip.compress(nifti())[:-8], "without_end.nii.gz"))
    bad.append(write(tmp_path, nifti()[:-4], "cut.nii"))
    bad += [tmp_path / "folder.nii.gz", tmp_path / "none.nii.gz", write(tmp_path, gzip.compress(nifti()), "packed.nii")]
    with pytest.raises(DataError) as error:
        check_headers([*sound, *bad], SMALL, 0)
    first, *lines = str(error.value).splitlines()
    assert first == f"{len(bad)} volumes cannot be used:"
    expected = [said for _, said in (HEADERS | OTHERS).values()]
    expected += [
        ": it is damaged (Compressed file ended before",
        f": it is damaged ({len(nifti()) - 4} bytes, and {len(nifti())} by its header)",
        " is a folder, not a file",
        " does not exist",
        " is compressed by gzip: give it a name that ends in .gz",
    ]
    for path, said, line in zip(bad, expected, lines, strict=True):
        assert line.startswith(f"  {path}{said}"), line


@pytest.mark.parametrize("spacing", ["1mm", "any"])
def test_who_insists_gets_voxels_of_any_size(tmp_path, spacing) -> None:
    path = write(tmp_path, gzip.compress(HEADERS["thick"][0]))
    if spacing == "any":
        check_headers([path], replace(SMALL, spacing="any"), 0)
    else:
        with pytest.raises(DataError, match=r"resample it, or set data\.spacing to any$"):
            check_headers([path], SMALL, 0)


def test_the_size_is_that_after_the_turn(tmp_path) -> None:
    """Stored as Anterior, Superior, Right: what is large enough was refused, what is not was trained on."""
    affine = np.eye(4)[[2, 0, 1, 3]]  # the grid's axes point to A, S, R
    root = dataset(tmp_path, {})
    path = root / TASK / "imagesTr" / "sound_0.nii.gz"
    nib.save(nib.Nifti1Image(np.moveaxis(VOXELS, 0, 2), affine), path)
    open_volumes(root, "training", Compose(volume_transforms(SMALL)), SMALL)
    nib.save(nib.Nifti1Image(VOXELS.repeat(4, 2)[:, :, :16], affine), path)
    with pytest.raises(DataError, match=r"shape \(16, 32, 32, 2\), at least \(32, 32, 4, 1\) is needed \(Right, Ant"):
        open_volumes(root, "training", Compose([]), SMALL)


# --- dataset.json


def edit_index(root: Path, change: Callable[[dict], object], encoding: str = "utf-8") -> None:
    path = root / TASK / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content), encoding=encoding)


@pytest.mark.parametrize(
    ("names", "channel", "taken"),
    [
        ("", 0, 0),  # says nothing
        ({}, 1, 1),
        ({"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, 2, 2),  # the Decathlon's
        ({"0": "T1w", "1": "FLAIR"}, 0, 1),
        ({"0": "t2f", "1": "T2-FLAIR"}, 0, 1),
        (["T1", "T1ce", "T2", "Flair"], 3, 2),
        ({"0": "FLAIR", "1": "FLAIR"}, 0, 0),
        ({"0": "CT"}, 4, 4),  # none of the four modalities
        ({"0": "T1w", "1": "T2w"}, 0, "data.channel is 0, FLAIR, and `modality` names no such channel (0 T1w, 1 T2w)"),
        ({"0": "T1w", "1": "FLAIR", "2": "flair"}, 0, "FLAIR, and `modality` names 2 such channels"),
    ],
)
def test_a_modality_is_found_by_its_name(tmp_path, capsys, names, channel, taken) -> None:
    """T1w as channel 0 was trained on as FLAIR."""
    root, config = dataset(tmp_path, {}), replace(SMALL, channel=channel)
    edit_index(root, lambda content: content.update(modality=names))
    index = read_index(root)
    assert channel_of(index, replace(config, modality="any")) == channel
    if isinstance(taken, str):
        with pytest.raises(DataError) as error:
            channel_of(index, config)
        assert taken in str(error.value)
        assert "set data.modality to any for channel 0 whatever it is" in str(error.value)
        return
    assert [channel_of(index, config) for _ in range(2)] == [taken, taken]
    said = f"{list(MODALITIES)[channel % 4]} is channel {taken}, which is used for data.channel {channel}"
    assert capsys.readouterr().err == f"{index.path}: {said}\n" * (taken != channel)


def test_the_channel_that_was_found_is_the_one_that_is_read(tmp_path) -> None:
    root = dataset(tmp_path, {})
    edit_index(root, lambda content: content.update(modality={"0": "T1w", "1": "FLAIR"}))
    volumes = open_volumes(root, "training", Compose(volume_transforms(SMALL)), SMALL)
    number = int(volumes.data[0]["name"].removeprefix("sound_"))
    stored = blocks(seed=number)[..., 1]
    scaled = (stored - stored.min()) / (stored.max() - stored.min())
    np.testing.assert_allclose(np.asarray(volumes[0]["image"])[0], scaled, atol=1e-6)


def test_both_stages_take_the_channel_in_one_way() -> None:
    """By index in stage 1 and by name in stage 2 it can be another; MONAI's own autoencoders know no names."""
    named, index = (replace(Config(), data=replace(SMALL, modality=modality)) for modality in ("named", "any"))
    with pytest.raises(ConfigError, match=r"trained with data\.channel=0 data\.modality=any .* has .*=named"):
        with_autoencoder_of(index, named)
    assert with_autoencoder_of(named, index) == index


def test_the_split_is_monais_and_the_list_may_be_of_other_hands(tmp_path) -> None:
    """A byte-order mark, absolute paths and ones that climb, and no word but the paths: MONAI refused all but paths."""
    root = dataset(tmp_path, {f"other_{i}": VOXELS for i in range(7)})
    names = {
        section: [Path(item["image"]).name for item in DecathlonDataset(root, TASK, section, lambda x: x, cache_num=0)]
        for section in ("training", "validation")
    }
    folder = root / TASK / "imagesTr"

    def strip(content: dict) -> None:
        entries = content["training"]
        content.clear()
        content["training"] = entries
        entries[0]["image"], entries[1]["image"] = str(folder / "sound_0.nii.gz"), f"../{TASK}/imagesTr/sound_1.nii.gz"

    edit_index(root, strip, encoding="utf-8-sig")
    for section, expected in names.items():
        volumes = open_volumes(root, section, Compose([]), SMALL, cache=False)
        assert [Path(item["image"]).name for item in volumes.data] == expected


def test_names_are_unique_by_construction() -> None:
    """A file was written over where two volumes had the same name, or the same up to the first dot."""
    flat = [Path("imagesTr/BRATS_001.nii.gz"), Path("imagesTr/sub-01.ses-1.nii.gz"), Path("imagesTr/sub-01.ses-2.nii")]
    assert volume_names(flat) == ["BRATS_001", "sub-01.ses-1", "sub-01.ses-2"]
    deep = [Path("a/case_001/flair.nii.gz"), Path("b/case_001/flair.nii.gz"), Path("b/case_001/FLAIR.nii")]
    assert volume_names(deep) == ["0000_case_001_flair", "0001_case_001_flair", "0002_case_001_FLAIR"]
    assert volume_names([Path("x/.nii.gz")]) == ["0000_x_"]
