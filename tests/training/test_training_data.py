"""Bad data are named with their path before the first step; a dry run says what a run will do."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from support.common import SMALL, both_stages, dataset, write_toml
from training import reconstruct, train_autoencoder, train_diffusion
from training.checkpoint import save_snapshot
from training.config import Data
from training.data import check_voxels, load_volume, open_volumes, volume_transforms
from training.decathlon import TASK, DataError, describe_data, read_index
from training.evaluation import slices


def load_all(root: Path) -> None:
    for section in ("training", "validation"):
        open_volumes(root, section, Compose(volume_transforms(SMALL)), SMALL)


def check_all(root: Path) -> None:
    for section in ("training", "validation"):
        check_voxels(root, section, SMALL)


def test_sound_volumes_pass_and_are_cached(tmp_path) -> None:
    """MONAI caches up to the first transform that is not of its own classes: a plain function would end it there."""
    root = dataset(tmp_path, {})
    load_all(root)
    volumes = open_volumes(root, "training", Compose(volume_transforms(SMALL)), SMALL)
    (root / TASK / "imagesTr").rename(tmp_path / "away")
    assert volumes[0]["image"].shape == (1, 32, 32, 4)


def test_files_that_cannot_be_volumes_are_all_named(tmp_path) -> None:
    """From their headers alone, so also those that would be read hours later."""
    bad = {
        "flat": np.zeros((32, 32, 4), np.float32),
        "narrow": np.zeros((31, 32, 4, 1), np.float32),
        "short": np.zeros((32, 32, 3, 1), np.float32),
        "text": b"this is no NIfTI file",
    }
    root = dataset(tmp_path, bad)
    (tmp_path / TASK / "imagesTr" / "sound_0.nii.gz").unlink()
    with pytest.raises(DataError) as error:
        load_all(root)
    message = str(error.value)
    assert message.startswith("5 volumes cannot be used")
    assert "sound_0.nii.gz does not exist" in message
    assert "flat.nii.gz: it has the shape (32, 32, 4), and four axes are needed" in message
    assert "narrow.nii.gz: it has the shape (31, 32, 4, 1), at least (32, 32, 4, 1) is needed" in message
    assert all(name in message for name in bad)
    with pytest.raises(DataError, match="at least"):
        open_volumes(root, "training", Compose([]), Data(size=32, depth=4, channel=3))


@pytest.mark.parametrize("look", [load_all, check_all])
def test_voxels_that_would_poison_a_run_are_all_named(tmp_path, look) -> None:
    """A changed bit and a lost checksum too: nibabel stops reading short of the checksum."""
    bad = {name: np.random.default_rng(9).random((32, 32, 5, 2), np.float32) for name in ("nan", "empty", "rim")}
    bad["nan"][3, 3, 3, 0] = np.nan
    bad["empty"][..., 0] = 0
    bad["rim"][:, :, :4, 0] = 0  # the crop is empty, the volume is not
    for volume in bad.values():
        volume[..., 1] = np.nan  # of a channel that nobody uses
    voxels = gzip.compress(nib.Nifti1Image(bad["rim"][..., 1:] * 0 + 1, np.eye(4)).to_bytes(), 0)
    bad["torn"], bad["without_end"] = voxels[:2000], voxels[:-8]
    bad["changed"] = voxels[:5000] + bytes([voxels[5000] ^ 16]) + voxels[5001:]
    root = dataset(tmp_path, bad)
    with pytest.raises(DataError) as error:
        look(root)
    lines = str(error.value).splitlines()
    assert len(bad) == 6
    for name in bad:
        line = next(line for line in lines if f"{name}.nii.gz" in line)
        assert {"nan": "holds NaN", "empty": "is empty, 0.0 everywhere", "rim": "is empty, 0.0 everywhere"}.get(
            name, "it is damaged"
        ) in line, line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"training": [', "is no JSON: Expecting value"),
        ("\xff", "is no JSON"),
        ('["training"]', "has no list `training`"),
        ('{"numTraining": 3}', "has no list `training`"),
        ('{"training": []}', "has no list `training`"),
        ('{"training": ["a.nii.gz"]}', "must be a table with the path `image`"),
        ("", "is empty, 0 bytes"),
        ("version https://git-lfs.github.com/spec/v1", "is a pointer of git-lfs, not the file: run `git lfs pull`"),
        ("[" * 100_000, "is no JSON: maximum recursion depth"),
        ('{"training": [{"image": "a.nii"}, {"image": "./b/../a.nii"}]}', "entries 0 and 1 of `training` are both"),
    ],
)
def test_a_list_of_volumes_that_cannot_be_used_is_named(tmp_path, content, message) -> None:
    root = dataset(tmp_path, {})
    (tmp_path / TASK / "dataset.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=rf"dataset\.json.* {message}"):
        load_all(root)
    with pytest.raises(DataError, match=message):
        describe_data(read_index(root))


def spoil_first(root: Path, section: str) -> Path:
    """Put one NaN into the volume of a section that is looked at first."""
    path = Path(open_volumes(root, section, Compose([]), SMALL, cache=False).data[0]["image"])
    volume = nib.load(path)
    voxels = volume.get_fdata(dtype=np.float32)
    voxels[3, 3, 3, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, volume.affine), path)
    return path


@pytest.mark.parametrize(
    ("verb", "section"),
    [
        (train_autoencoder, "training"),
        (train_autoencoder, "validation"),
        (train_diffusion, "training"),
        (train_diffusion, "validation"),
        (reconstruct, "validation"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.split(".")[1],
)
def test_every_verb_names_the_volume_that_holds_nan(tiny, small_snapshot, tmp_path, capsys, verb, section) -> None:
    """All but the first ended in MONAI's traceback, which says much of transforms and nothing of the file."""
    root, snapshot = dataset(tmp_path, {}), replace(small_snapshot, config=tiny)
    bad = spoil_first(root, section)
    save_snapshot(snapshot, tmp_path / "snapshot")
    file = write_toml(both_stages(tiny, validate_every=1, epochs=1), tmp_path / "tiny.toml")
    arguments = {
        train_autoencoder: ["--config", file],
        train_diffusion: ["--config", file, "--autoencoder", str(tmp_path / "snapshot")],
        reconstruct: ["--snapshot", str(tmp_path / "snapshot")],
    }[verb]
    assert verb.main([*arguments, "--data", str(root), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {bad}: channel 0 holds NaN or infinity"


def test_slices_names_the_volume_that_holds_nan(tmp_path, capsys) -> None:
    """It reads whole volumes of 240 x 240 x 100 whatever they were trained with."""
    root = dataset(tmp_path, {})
    index = json.loads((root / TASK / "dataset.json").read_text())
    voxels = np.full((240, 240, 100, 1), np.nan, np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / TASK / "imagesTr" / "large.nii.gz")
    index["training"] = [{"image": "imagesTr/large.nii.gz", "label": ""}]
    (root / TASK / "dataset.json").write_text(json.dumps(index))
    command = ["--data", str(root), "--section", "training", "--out", str(tmp_path / "out")]
    assert slices.main(command) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [TASK]
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {root / TASK / 'imagesTr' / 'large.nii.gz'}: channel 0 holds NaN or infinity"


def test_what_upsets_a_transform_is_told_with_the_file(tmp_path) -> None:
    """Here one that asks for more than the header, which has been looked at, promises."""
    root = dataset(tmp_path, {})
    volumes = open_volumes(root, "training", Compose([*volume_transforms(SMALL), lambda _: 1 / 0]), SMALL, cache=False)
    with pytest.raises(DataError) as error:
        load_volume(volumes, 0)
    lines = str(error.value).splitlines()
    assert lines[0] == "6 volumes cannot be used:"
    assert f"  {volumes.data[0]['image']} cannot be used: division by zero" in lines


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_dry_run_says_what_a_run_will_do_and_writes_nothing(phantom, small_snapshot, tmp_path, stage, capsys) -> None:
    out = tmp_path / "run"
    save_snapshot(small_snapshot, tmp_path / "stage1")
    extra = ["--autoencoder", str(tmp_path / "stage1")] if stage == "diffusion" else []
    verb = train_diffusion if stage == "diffusion" else train_autoencoder
    options = ["--config", "demo", "--data", str(phantom), "--out", str(out), *extra]
    assert verb.main([*options, f"--{stage}-training.slices-per-volume", "3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not out.exists()
    # What will run: the autoencoder of the snapshot, not that of the configuration.
    assert ("channels = (8, 8, 16)" in said) == (stage == "diffusion")
    assert {"autoencoder": "cached volumes", "diffusion": "all latents"}[stage] in said
    for text in ("slices_per_volume = 3", "volumes x 3 slices", "1 updates an epoch", str(out / "snapshot")):
        assert text in said, text
    line = {"autoencoder": "autoencoder             252,", "diffusion": "unet                  3,699,265 parameters"}[
        stage
    ]
    assert line[:16] in said
    assert ("3,699,265" in said) == (stage == "diffusion")


def test_the_memory_estimate_counts_what_autograd_keeps() -> None:
    """Linear, ReLU, square: the input is no parameter and is kept, the weight is not counted, and so on by hand."""
    import torch

    from training.dry_run import bytes_for_backward

    network = torch.nn.Linear(10, 20)
    x = torch.randn(5, 10)
    kept = bytes_for_backward(lambda: network(x).relu().square().sum(), {"network": network})
    # The input of the linear layer, and the output of the ReLU, which both ReLU and square need: one storage.
    assert kept == 4 * (5 * 10 + 5 * 20)
