"""Label maps in training: where their pixels land, who sees them, and what the networks that take them begin with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.common import blocks, both_stages, dataset
from training import train_autoencoder, train_diffusion
from training.checkpoint import UNET, CheckpointError, load_snapshot, save_snapshot, without_labels
from training.conditioning import CHANNELS, condition_of, condition_of_maps, given_none, label_counts
from training.config import Config, ConfigError, Data, load_config
from training.data import Compose, label_transforms, load_volume, open_volumes, padded, volume_transforms
from training.decathlon import TASK, DataError, read_index
from training.dry_run import memory
from training.labels import draw_condition, encode_labels, lesions_in
from training.latents import draw_latents
from training.networks import build_unet

SMALL = Data(size=32, depth=4, workers=1, modality="any")


def labelled(folder: Path, make: Callable[[int], np.ndarray], axes: tuple[int, ...] = (1, 1, 1)) -> Path:
    """`dataset` with a label map of each of its six volumes; images and maps with the same axes."""
    dataset(folder)
    affine = np.diag([*axes, 1.0])
    (folder / TASK / "labelsTr").mkdir()
    path = folder / TASK / "dataset.json"
    index = json.loads(path.read_text())
    for number, entry in enumerate(index["training"]):
        entry["label"] = f"labelsTr/{Path(entry['image']).name}"
        nib.save(nib.Nifti1Image(blocks(number), affine), folder / TASK / entry["image"])
        nib.save(nib.Nifti1Image(make(number), affine), folder / TASK / entry["label"])
    path.write_text(json.dumps(index))
    return folder


def some_labels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 4, (32, 32, 4), np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return labelled(tmp_path_factory.mktemp("labelled"), some_labels)


def test_a_condition_is_the_share_of_each_label_and_whether_a_map_is_given() -> None:
    labels = torch.zeros(1, 240, 240, dtype=torch.uint8)
    labels[0, 0:4, 0:4] = 1  # latent (2, 2): 8 pixels of padding are 2 latents
    labels[0, 4:6, 8:12] = 3
    condition = condition_of_maps(labels)[0]
    assert condition.shape == (CHANNELS, 64, 64)
    assert condition[0, 2, 2] == 1
    assert condition[2, 3, 4] == 0.5
    assert condition[:3].sum() == 1.5
    assert (condition[3] == 1).all()
    assert torch.equal(condition_of(label_counts(torch.zeros(1, 256, 256)))[0, :3], torch.zeros(3, 64, 64))


@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
def test_a_map_lies_on_its_image_whatever_the_orientation(tmp_path, axes) -> None:
    """The map is drawn where the image is bright, and must be there after all transforms."""

    def bright(number: int) -> np.ndarray:
        volume = blocks(number)[..., 0]
        return (volume > np.median(volume)).astype(np.uint8) * 2

    folder = labelled(tmp_path, bright, axes)
    transform = Compose([*volume_transforms(SMALL), *label_transforms(SMALL), padded("image"), padded("label")])
    volumes = open_volumes(folder, "training", transform, SMALL)
    for index in range(len(volumes)):
        item = load_volume(volumes, index)
        inside = item["label"].as_tensor() == 2
        assert item["image"][inside].min() > item["image"][~inside].max()
    counts = encode_labels(folder, "training", SMALL)
    assert counts.shape == (5, 4, 3, 8, 8)
    assert set(counts[:, :, 1].unique().tolist()) == {0, 16}
    assert counts[:, :, [0, 2]].max() == 0


def slices_with_labels() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Five volumes of eight slices: latents that hold the number of their slice, and labels that do, too.

    Volume 0 shows no lesion, the others in one slice in four.
    """
    numbers = torch.arange(5 * 8, dtype=torch.float32).reshape(5, 8, 1, 1)
    shown = (torch.arange(8) % 4 == 1) & (torch.arange(5) > 0)[:, None]
    labels = (numbers.to(torch.uint8) % 16 + 1)[:, :, None] * shown[:, :, None, None, None].to(torch.uint8)
    latents = {"mu": numbers.expand(5, 8, 8, 8), "sigma": torch.zeros(5, 8, 8, 8)}
    return latents, labels.expand(5, 8, 3, 8, 8)


def test_every_second_row_sees_the_map_of_its_own_slice_most_often_with_a_lesion() -> None:
    latents, labels = slices_with_labels()
    lesions, numbers, seeing = lesions_in(labels), [], []
    for iteration in range(300):
        z = draw_latents(latents, 3, 2, 0, iteration, lesions=lesions)[:, 0, 0, 0].long()
        condition = draw_condition(labels, lesions, 3, 2, 0, iteration)
        for row, (number, seen) in enumerate(zip(z.tolist(), condition, strict=True)):
            assert bool(seen[-1].all()) == bool(seen[-1].any()) == ((row + iteration) % 2 == 0)
            wanted = labels[number // 8, number % 8].float() / 16 * seen[-1].mean()
            assert torch.equal(seen[:-1], wanted)
            numbers.append(number)
            seeing.append(bool(seen[-1].any()))
    drawn, labelled = torch.tensor(numbers), torch.tensor(seeing)
    shown = lesions.flatten()[drawn]
    assert shown[labelled & (drawn >= 8)].all()
    assert set(drawn[labelled & (drawn < 8)].tolist()) == set(range(8))  # no lesion to choose in that volume
    assert 0.1 < shown[~labelled].float().mean() < 0.3
    assert set(drawn[~labelled].tolist()) == set(range(40))


def test_without_labels_slices_and_noise_are_drawn_as_ever() -> None:
    latents, labels = slices_with_labels()
    latents["sigma"] = torch.ones(5, 8, 8, 8)
    for iteration in range(4):
        plain = draw_latents(latents, 3, 2, 0, iteration)
        assert not torch.equal(plain, draw_latents(latents, 3, 2, 0, iteration, lesions=lesions_in(labels)))
        assert torch.equal(plain, draw_latents(latents, 3, 2, 0, iteration, 0, 1))


def conditioned(config: Config) -> Config:
    return replace(config, unet=replace(config.unet, conditioning="labels"))


@pytest.mark.slow
def test_a_run_with_labels_resumes_bit_for_bit_and_begins_with_a_network_without(tiny, data, tmp_path) -> None:
    stage1 = train_autoencoder.train(both_stages(tiny, epochs=1), data, tmp_path / "1")
    before = train_diffusion.train(both_stages(tiny, epochs=2), stage1, data, tmp_path / "2")
    config = conditioned(both_stages(tiny, checkpoint_every=1, validate_every=1, validation_volumes=1))
    whole = train_diffusion.train(both_stages(config, epochs=2), stage1, data, tmp_path / "whole", before)
    for epochs in (1, 2):
        parts = train_diffusion.train(both_stages(config, epochs=epochs), stage1, data, tmp_path / "parts", before)
    assert (parts / UNET).read_bytes() == (whole / UNET).read_bytes()
    assert len(list((tmp_path / "whole" / "pictures").glob("labels_*.png"))) == 2

    # With a tiny learning rate it is the network that it began with, whatever the labels.
    still = both_stages(config, epochs=1, learning_rate=1e-9)
    begun = train_diffusion.train(still, stage1, data, tmp_path / "still", before)
    old, new = load_file(before / UNET), load_file(begun / UNET)
    assert (new["conv_in.conv.weight"][:, :1] - old["conv_in.conv.weight"]).abs().max() < 1e-6
    assert new["conv_in.conv.weight"][:, 1:].abs().max() < 1e-6
    # Every row of the weights that see the labels learns.
    learned = load_file(whole / UNET)["conv_in.conv.weight"][:, 1:]
    assert learned.abs().amax((0, 2, 3)).min() > 1e-5

    with pytest.raises(CheckpointError, match=r"holds another network \(conditioning labels, not none\)"):
        train_diffusion.train(both_stages(tiny, epochs=1), stage1, data, tmp_path / "back", whole)


def test_without_labels_a_network_predicts_what_it_does_where_no_map_is_given(labelled_snapshot, tmp_path) -> None:
    save_snapshot(labelled_snapshot, tmp_path / "s")
    snapshot = load_snapshot(tmp_path / "s")
    assert snapshot.config == labelled_snapshot.config
    with_, without = build_unet(snapshot.config.unet).eval(), build_unet(without_labels(snapshot).config.unet).eval()
    with_.load_state_dict(snapshot.unet)
    without.load_state_dict(without_labels(snapshot).unet)
    latents, timesteps = torch.randn(2, 1, 64, 64), torch.tensor([3, 700])
    with torch.no_grad():
        expected = given_none(with_, snapshot.config.unet)(latents, timesteps)
        torch.testing.assert_close(without(latents, timesteps), expected, atol=1e-5, rtol=1e-5)


def test_configurations_with_labels_differ_in_the_input_and_the_weighted_loss_alone() -> None:
    for name in ("demo", "brats"):
        config = conditioned(load_config(name))
        training = replace(config.diffusion_training, max_loss_weight=500)
        assert load_config(f"{name}-labels") == replace(config, diffusion_training=training)


def test_a_base_that_does_not_exist_and_a_wrong_word_are_named(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "nope"\n')
    with pytest.raises(
        ConfigError, match="no configuration 'nope': give one of brats, brats-labels, demo, demo-labels"
    ):
        load_config(str(path))
    path.write_text('base = "demo"\n[unet]\nconditioning = "masks"\n')
    with pytest.raises(ConfigError, match=r"'masks' is not one of none, labels @ .*unet\.conditioning"):
        load_config(str(path))


def test_a_dry_run_counts_the_channels_of_the_condition(tiny) -> None:
    more, fewer = (memory(config, "diffusion")[0]["unet"] for config in (conditioned(tiny), tiny))
    assert more - fewer == CHANNELS * tiny.unet.channels[0] * 9


def test_maps_that_cannot_be_used_are_named(tmp_path) -> None:
    folder = labelled(tmp_path, some_labels)
    path = folder / TASK / "dataset.json"
    index = json.loads(path.read_text())
    names = [Path(entry["label"]).name for entry in index["training"]]
    nib.save(nib.Nifti1Image(np.zeros((32, 32, 3), np.uint8), np.eye(4)), folder / TASK / "labelsTr" / names[1])
    (folder / TASK / "labelsTr" / names[2]).unlink()
    index["training"][3]["label"] = ""
    path.write_text(json.dumps(index))
    with pytest.raises(DataError) as refused:
        encode_labels(folder, "training", SMALL)
    lines = str(refused.value).splitlines()
    assert lines[0] == "3 label maps cannot be used:"
    assert f"{names[1]} has the shape (32, 32, 3), and its image (32, 32, 4)" in lines[1]
    assert f"{names[2]} does not exist" in lines[2]
    assert f"dataset.json names no label map of {read_index(folder).volumes[3].path}" in lines[3]
    assert lines[-1].startswith("each volume needs one, with the grid of its image")


def test_a_label_that_means_nothing_is_named(tmp_path) -> None:
    folder = labelled(tmp_path, lambda number: some_labels(number) + np.uint8(3))
    with pytest.raises(DataError, match=r"sound_\d\.nii\.gz holds 4: a label is 0 or one of 1 oedema, 2 non-enhancing"):
        encode_labels(folder, "training", SMALL)
