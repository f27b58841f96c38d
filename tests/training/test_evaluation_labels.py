"""Label-conditioned slices: a segmenter finds the lesions that maps ask for, and does not find those of other maps."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from training.decathlon import TASK
from training.evaluation import labels
from training.evaluation.following import FOLLOWING_ARM, SYNTHETIC, lesion_contrast, measure, nearest_maps
from training.evaluation.labels_report import table, verdict
from training.evaluation.pairs import Pairs, draw, joined, read_pairs, read_section
from training.evaluation.segmenter import dice_by_region
from training.evaluation.slices import SliceError

DEPTH = 100  # of the volumes that training takes


def heads(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices float32 [count, size, size] in [0, 1] and their label maps uint8: a brain of blocks on black; in three of
    four slices a lesion of nested discs, brighter with each label."""
    rng = np.random.default_rng(seed)
    x, y = np.ogrid[:size, :size]
    blocks = rng.uniform(0.2, 0.35, (count, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    images = blocks * (np.hypot(x - size / 2, y - size / 2) < 0.45 * size)
    maps = np.zeros((count, size, size), np.uint8)
    for labels_of, (i, j), index in zip(maps, rng.uniform(0.3, 0.7, (count, 2)) * size, range(count), strict=True):
        for label, radius in enumerate((0.16, 0.11, 0.06), start=1):
            labels_of[np.hypot(x - i, y - j) < radius * size * (index % 4 > 0)] = label
    images += np.array([0, 0.25, 0.4, 0.55])[maps]
    return images.astype(np.float32), maps


def as_pairs(images: np.ndarray, maps: np.ndarray, files: int = 1) -> Pairs:
    """Pairs of `files` volumes of equal size."""
    names = [str(i) for i in range(len(images))]
    return Pairs(images, maps, names, np.arange(len(images)) * files // len(images))


def write_task(folder: Path, images: list[np.ndarray], maps: list[np.ndarray], suffix: str = "nii.gz") -> Path:
    """A Task01_BrainTumour of images and label maps [240, 240, n]."""
    entries = []
    for number, parts in enumerate(zip(images, maps, strict=True)):
        entries.append({kind: f"{kind}sTr/{number:03d}.{suffix}" for kind in ("image", "label")})
        for name, voxels in zip(entries[-1].values(), parts, strict=True):
            path = folder / TASK / name
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    (folder / TASK / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}, "training": entries}))
    return folder


def write_pairs(folder: Path, images: np.ndarray, maps: np.ndarray) -> Path:
    return write_task(folder, [image[..., None] for image in images], [labels[..., None] for labels in maps])


# --- figures


def test_dice_is_of_nested_regions_and_only_where_they_are_wanted() -> None:
    wanted = np.zeros((3, 8, 8), np.uint8)
    wanted[0, :4, :4], wanted[0, :2, :4], wanted[1, 0, 0] = 1, 3, 1
    found = np.zeros_like(wanted)
    found[0, :4, :2], found[2] = 2, 1
    expected = [[2 * 8 / (16 + 8), 2 * 4 / (8 + 8), 0], [0, np.nan, np.nan], [np.nan] * 3]
    np.testing.assert_allclose(dice_by_region(found, wanted), expected, rtol=1e-6)


def test_contrast_is_of_the_same_slice_and_leaves_the_background_out() -> None:
    """A slice of 0.5, a third of it background, with oedema of 0.8 and an enhancing rim of 0.3; one without lesion."""
    image, labels_of = np.full((6, 6), 0.5, np.float32), np.zeros((6, 6), np.uint8)
    image[:2] = 0.01
    labels_of[2:4, :3], labels_of[4, :3] = 1, 3
    image[2:4, :3], image[4, :3] = 0.8, 0.3
    pairs = as_pairs(np.stack([image, image]), np.stack([labels_of, 0 * labels_of]))
    np.testing.assert_allclose(lesion_contrast(pairs), [[0.3, np.nan, -0.2], [np.nan] * 3], rtol=1e-6)


def test_the_nearest_map_is_found_with_its_dice() -> None:
    _, maps = heads(8, 96, seed=0)
    moved = np.roll(maps[5], 2, axis=0)
    nearest = nearest_maps(np.stack([maps[3], moved, 0 * moved]), maps)
    assert nearest.index[:2].tolist() == [3, 5]
    same = 2 * ((moved == maps[5]) & (moved > 0)).sum() / ((moved > 0).sum() + (maps[5] > 0).sum())
    np.testing.assert_allclose(nearest.similarity, [1, same, 0], rtol=1e-6)
    assert 0.5 < same < 0.99


def test_a_draw_takes_few_slices_of_each_volume_by_the_seed() -> None:
    pairs = as_pairs(*heads(120, 16, seed=0), files=3)
    drawn, again, other = (draw(pairs, seed) for seed in (0, 0, 1))
    assert np.bincount(drawn.files).tolist() == [10] * 3
    assert drawn.with_lesion().sum() == 24
    assert drawn.names == again.names != other.names
    np.testing.assert_array_equal(drawn.images, pairs.images[[int(name) for name in drawn.names]])


@pytest.mark.slow
def test_slices_that_follow_their_maps_are_told_from_those_that_do_not() -> None:
    """Real held-out slices in place of synthetic ones, once with their own maps and once with those of others."""
    images, maps = heads(24, 80, seed=2)
    held_out, training = as_pairs(images, maps, files=2), as_pairs(*heads(96, 80, seed=1), files=12)
    lesion = np.flatnonzero(held_out.with_lesion())
    own, others = held_out.part(lesion), held_out.part(lesion)._replace(maps=maps[np.roll(lesion, 1)])
    result = measure(training, held_out, joined([own, others]), 60, 0, torch.device("cpu"))
    whole = result.dice[FOLLOWING_ARM][:, 0]
    own_dice, others_dice = whole[: len(lesion)].mean(), whole[len(lesion) :].mean()
    assert own_dice == pytest.approx(np.nanmean(result.dice["real", "held-out real"][:, 0]))
    assert own_dice > 0.6
    assert others_dice < 0.5 * own_dice
    assert result.ratios()[0] == pytest.approx((own_dice + others_dice) / (2 * own_dice))
    assert verdict(result) == "miss"  # half of the slices do not follow
    assert list(result.dice) == [
        ("real", "held-out real"),
        FOLLOWING_ARM,
        (SYNTHETIC, "held-out real"),
        ("10 % real", "held-out real"),
        ("10 % real + synthetic", "held-out real"),
    ]
    assert "target is 0.9: miss" in table(result)


# --- folders


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with Task01_BrainTumour of six volumes of 100 slices, one of them held out."""
    images, maps = [], []
    for seed in range(6):
        parts = heads(8, 240, seed)
        slices, labels_of = (part.repeat(13, axis=0)[:DEPTH].transpose(1, 2, 0) for part in parts)
        images.append((1000 * slices[..., None]).astype(np.int16))
        maps.append(labels_of)
    return write_task(tmp_path_factory.mktemp("data"), images, maps, suffix="nii")


@pytest.mark.slow
def test_a_section_is_what_the_networks_see_beside_its_maps(data) -> None:
    """Images scaled by the volume's own range; each map lies on its image, because the lesion is brighter."""
    section = read_section(data, "validation")
    assert (section.images.shape, section.images.dtype) == ((DEPTH, 240, 240), np.float16)
    assert section.images.max() == 1
    assert section.images[section.maps > 0].min() > section.images[section.maps == 0].max()
    assert section.names[7].endswith("[7]")


@pytest.mark.slow
def test_the_command_writes_table_record_and_page(data, tmp_path, capsys) -> None:
    """Pairs that are training slices unchanged: copies, and maps of the training data."""
    chosen = read_section(data, "training").part(np.arange(0, 500, 20))
    command = [f"--data={data}", f"--pairs={write_pairs(tmp_path / 'pairs', chosen.images, chosen.maps)}"]
    assert labels.main([*command, f"--out={tmp_path / 'out'}", "--updates=2"]) == 0
    printed = capsys.readouterr().out
    lesions = int(chosen.with_lesion().sum())
    assert f"maps: {lesions} of {lesions} synthetic maps with a lesion are those of training slices" in printed
    assert f"pairs: {lesions} synthetic slices are copies with such a map" in printed
    result = json.loads((tmp_path / "out" / "evaluation_labels.json").read_text())
    assert [row["tested_on"] for row in result["dice"]] == ["held-out real", "synthetic", *["held-out real"] * 3]
    assert result["slices"] == {"drawn training": 50, "training": 500, "held-out real": 10, "synthetic": 25}
    assert result["contrast"]["synthetic"]["oedema"]["slices"] == lesions
    assert result["contrast"]["synthetic"]["enhancing tumour"]["mean"] > 0.3
    assert result["memorisation"]["copies"] == 25
    assert result["verdict"] in ("pass", "miss")
    assert Image.open(tmp_path / "out" / "evaluation_labels.png").size == (1100, 1000)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation_labels.json", "evaluation_labels.png"}


def test_pairs_are_read_from_either_folder_and_turned_to_ras(tmp_path) -> None:
    images, maps = heads(20, 240, seed=0)
    folder = write_pairs(tmp_path / "pairs", images, maps)
    turned = np.diag([-1.0, 1, 1, 1])
    for kind, voxels in (("images", images), ("labels", maps)):
        nib.save(nib.Nifti1Image(voxels[3][::-1, :, None], turned), folder / TASK / f"{kind}Tr" / "003.nii.gz")
    for given in (folder, folder / TASK):
        pairs = read_pairs(given)
        np.testing.assert_array_equal(pairs.images, images)
        np.testing.assert_array_equal(pairs.maps, maps)
        assert (pairs.maps.dtype, pairs.names[3], pairs.files.tolist()) == (np.uint8, "003", list(range(20)))


def test_unusable_pairs_are_one_message(tmp_path, capsys) -> None:
    images, maps = heads(20, 240, seed=0)
    with pytest.raises(SliceError, match=r"holds no Task01_BrainTumour/dataset\.json"):
        read_pairs(tmp_path)
    with pytest.raises(SliceError, match="holds 3 pairs: at least 20 are needed"):
        read_pairs(write_pairs(tmp_path / "few", images[:3], maps[:3]))
    with pytest.raises(SliceError, match="no label map holds a lesion"):
        read_pairs(write_pairs(tmp_path / "healthy", images, 0 * maps))
    folder = write_pairs(tmp_path / "bad", images, maps) / TASK
    bad = {"000": maps[0] + 4, "001": maps[1][:200], "002": maps[2][..., None].repeat(2, -1)}
    for name, voxels in bad.items():
        nib.save(nib.Nifti1Image(np.atleast_3d(voxels), np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    (folder / "labelsTr" / "003.nii.gz").unlink()
    assert labels.main([f"--data={tmp_path}", f"--pairs={folder}", f"--out={tmp_path / 'out'}"]) == 1
    first, *lines, last = capsys.readouterr().err.strip().splitlines()[-6:]
    assert first == "error: 4 pairs cannot be used:"
    said = ("000.nii.gz holds 4", "001.nii.gz has the shape", "002.nii.gz holds 2 maps, and its", "does not exist")
    for line, words in zip(lines, said, strict=True):
        assert words in line
    assert last.startswith("a pair is an image, 240 x 240")
    assert not (tmp_path / "out").exists()
