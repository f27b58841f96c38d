"""`brats` is the bundle `brats_mri_axial_slices_generative_diffusion` v1.1.2, number for number.

The bundle's configuration is written down here once more, from its description, and MONAI runs it: numbers, networks,
split, and transforms sample by sample. Its files use older names; what a trained file must be called in MONAI >= 1.5
stands in `data/state_dict_keys.txt`, one `network.key [shape]` a line. That list was written from MONAI 1.6.1's classes
with the bundle's arguments; the tests hold it to the published counts of the older layout and to MONAI's conversion.
"""

import gzip
import json
import os
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    DivisiblePadd,
    EnsureChannelFirstd,
    EnsureTyped,
    Lambdad,
    LoadImaged,
    Orientationd,
    RandFlipd,
    RandSpatialCropSamplesd,
    ScaleIntensityRangePercentilesd,
    SqueezeDimd,
)

from support.common import ROOT
from training.config import load_config
from training.data import autoencoder_transforms, diffusion_transforms, draw_volumes, open_volumes
from training.decathlon import TASK
from training.latents import draw_latents
from training.networks import build_autoencoder, build_discriminator, build_unet

BRATS = load_config("brats")
KEYS = ROOT / "tests" / "data" / "state_dict_keys.txt"
VOLUMES, TRAINING, VALIDATION = 484, 388, 96

# --- numbers

# train_autoencoder.json, train_diffusion.json and losses.py of the bundle, under the names of our configuration.
BUNDLE: dict[str, Any] = {
    "seed": 0,
    "data.channel": 0,
    "data.depth": 100,
    "data.size": 240,
    "data.cache_rate": 1.0,
    "data.workers": 8,
    "autoencoder.channels": (64, 128, 256),
    "autoencoder.num_res_blocks": 2,
    "autoencoder.norm_num_groups": 32,
    "autoencoder.nonlocal_attention": True,
    "discriminator.channels": 32,
    "discriminator.num_layers": 3,
    "unet.channels": (32, 64, 128, 256),
    "unet.attention_levels": (False, True, True, True),
    "unet.num_head_channels": (0, 32, 32, 32),
    "unet.num_res_blocks": 2,
    "unet.norm_num_groups": 32,
    "noise_schedule.num_train_timesteps": 1000,
    "noise_schedule.beta_start": 0.0015,
    "noise_schedule.beta_end": 0.0195,
    "autoencoder_training.epochs": 1500,
    "autoencoder_training.volumes_per_batch": 1,
    "autoencoder_training.slices_per_volume": 26,
    "autoencoder_training.learning_rate": 5e-5,
    "autoencoder_training.milestones": (),
    "autoencoder_training.kl_weight": 1e-6,
    "autoencoder_training.adversarial_weight": 0.5,
    "perceptual.weight": 1.0,
    "autoencoder_training.precision": "fp32",
    "autoencoder_training.ema_decay": 0.0,
    "autoencoder_training.adversarial_start": 0,
    "autoencoder_training.accumulate": 1,
    "autoencoder_training.warmup": 0,
    "autoencoder_training.max_grad_norm": 0.0,
    "diffusion_training.epochs": 1000,
    "diffusion_training.volumes_per_batch": 2,
    "diffusion_training.slices_per_volume": 50,
    "diffusion_training.learning_rate": 5e-5,
    "diffusion_training.milestones": (1000,),
    "diffusion_training.gamma": 0.1,
    "diffusion_training.ema_decay": 0.0,
    "diffusion_training.precision": "fp32",
    "diffusion_training.accumulate": 1,
    "diffusion_training.warmup": 0,
    "diffusion_training.max_grad_norm": 0.0,
}


def test_the_configuration_has_the_bundles_numbers() -> None:
    assert {name: attrgetter(name)(BRATS) for name in BUNDLE} == BUNDLE


def test_the_noise_schedule_has_the_bundles_signal() -> None:
    """alpha-bar as the bundle's scheduler gives it, to the digits that its description has."""
    schedule = BRATS.noise_schedule
    roots = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.num_train_timesteps)
    alpha_bars = np.cumprod(1 - roots**2)
    published = {0: 0.9985, 20: 0.96735, 500: 0.11492, 980: 2.06e-4, 999: 1.42e-4}
    assert {t: alpha_bars[t] for t in published} == pytest.approx(published, rel=4e-3)


# --- networks


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_networks_have_the_bundles_sizes() -> None:
    """Parameters by part: networks of another shape can agree in their sum, but hardly in each part."""
    autoencoder, unet = build_autoencoder(BRATS.autoencoder), build_unet(BRATS.unet)
    assert size(autoencoder) == 12_151_496
    encoder = (autoencoder.encoder, autoencoder.quant_conv_mu, autoencoder.quant_conv_log_sigma)
    assert sum(map(size, encoder)) == 12_151_496 - 6_628_995
    assert size(autoencoder.decoder) + size(autoencoder.post_quant_conv) == 6_628_995
    assert size(unet) == 15_392_641
    parts = ("conv_in", "time_embed", "down_blocks", "middle_block", "up_blocks", "out")
    assert [size(getattr(unet, part)) for part in parts] == [320, 20_736, 3_633_312, 2_626_304, 9_111_616, 353]
    assert size(build_discriminator(BRATS.discriminator)) == 692_769
    assert autoencoder.encode(torch.zeros(1, 1, 32, 48))[0].shape == (1, 1, 8, 12)


def listed_keys(network: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of `network`, from the list."""
    lines = [line.split(" ", 1) for line in KEYS.read_text().splitlines() if line.startswith(f"{network}.")]
    return {name.removeprefix(f"{network}."): tuple(json.loads(shape)) for name, shape in lines}


def legacy(keys: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The layout of the published files (monai-generative 0.2): attention beside a projection that is never used."""
    renamed = {re.sub(r"\.attn\.(to_.)", r".\1", key).replace("postconv", "conv"): keys[key] for key in keys}
    for key in keys:
        if match := re.fullmatch(r"(.+)\.attn\.to_q\.(weight|bias)", key):
            renamed[f"{match[1]}.proj_attn.{match[2]}"] = keys[key]
    return renamed


@pytest.mark.parametrize(
    ("network", "tensors", "legacy_tensors", "legacy_size"),
    [("autoencoder", 178, 182, 12_283_080), ("unet", 400, 432, 15_890_753)],
)
def test_the_keys_are_the_published_ones(network: str, tensors: int, legacy_tensors: int, legacy_size: int) -> None:
    """The list, the networks, the counts of the published layout, and MONAI's loader of that layout agree."""
    built: AutoencoderKL | DiffusionModelUNet
    built = build_autoencoder(BRATS.autoencoder) if network == "autoencoder" else build_unet(BRATS.unet)
    keys = listed_keys(network)
    assert {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()} == keys
    assert len(keys) == tensors
    old = legacy(keys)
    assert len(old) == legacy_tensors
    assert sum(int(np.prod(shape)) for shape in old.values()) == legacy_size
    # MONAI's loader is strict, and each tensor of its own value must arrive where the names say.
    values = {key: torch.full(shape, float(index)) for index, (key, shape) in enumerate(sorted(old.items()))}
    built.load_old_state_dict(dict(values))
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, values[next(iter(legacy({key: keys[key]})))]), key


# --- split


def test_the_split_is_the_bundles(tmp_path) -> None:
    """388 training and 96 validation volumes of 484, by index in dataset.json; each file is a header without voxels."""
    index = {"name": "BRATS", "numTraining": VOLUMES, "numTest": 0, "test": []}
    index |= dict.fromkeys(("description", "reference", "licence", "tensorImageSize", "modality", "labels"), "")
    index["training"] = [{"image": f"imagesTr/{i}.nii.gz", "label": f"labelsTr/{i}.nii.gz"} for i in range(VOLUMES)]
    folder = tmp_path / TASK
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(index))
    header = nib.Nifti1Header()
    header.set_data_shape((240, 240, 155, 4))
    header.set_data_offset(header.single_vox_offset)
    (folder / "header").write_bytes(gzip.compress(header.binaryblock))
    for entry in index["training"]:
        os.link(folder / "header", folder / entry["image"])
    split = {}
    for section in ("training", "validation"):
        volumes = open_volumes(tmp_path, section, Compose([]), BRATS.data, cache=False)
        split[section] = [int(Path(item["image"]).name.split(".")[0]) for item in volumes.data]
    assert split["training"][:5] == [375, 264, 235, 200, 213]
    assert split["validation"][:5] == [15, 124, 141, 263, 170]
    assert (len(split["training"]), len(split["validation"])) == (TRAINING, VALIDATION)
    assert sorted(split["training"] + split["validation"]) == list(range(VOLUMES))


# --- transforms


def bundle_volume(pad: int) -> list[Any]:
    """The bundle's deterministic transforms, in its order and with its arguments, then the padding of a stage."""
    return [
        LoadImaged(keys="image"),
        EnsureChannelFirstd(keys="image"),
        Lambdad(keys="image", func=lambda x: x[0, :, :, :]),
        EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
        EnsureTyped(keys="image"),
        Orientationd(keys="image", axcodes="RAS", labels=None),
        CenterSpatialCropd(keys="image", roi_size=[240, 240, 100]),
        ScaleIntensityRangePercentilesd(keys="image", lower=0, upper=100, b_min=0, b_max=1),
        DivisiblePadd(keys="image", k=[pad, pad, 1]),
    ]


def bundle_slices(patch: int, samples: int) -> list[Any]:
    """The bundle's random slices."""
    crop = RandSpatialCropSamplesd(keys="image", random_size=False, roi_size=[patch, patch, 1], num_samples=samples)
    return [crop, SqueezeDimd(keys="image", dim=3)]


@pytest.fixture(scope="module")
def volume(phantom) -> dict[str, Any]:
    """One volume of the phantom, by path; the tests copy it, since transforms write into what they are given."""
    return {"image": str(sorted((phantom / TASK / "imagesTr").glob("*.nii.gz"))[0])}


@pytest.mark.slow
def test_the_autoencoder_sees_the_bundles_samples(volume) -> None:
    """26 slices and their flips, bit for bit under one random state."""
    flips = [RandFlipd(keys=["image"], prob=0.5, spatial_axis=axis) for axis in (0, 1)]
    reference = Compose([*bundle_volume(4), *bundle_slices(240, 26), *flips])
    chain_of_training = autoencoder_transforms(BRATS.data, BRATS.autoencoder_training.slices_per_volume)
    samples = [chain.set_random_state(11)(dict(volume)) for chain in (reference, chain_of_training)]
    expected, actual = (torch.stack([sample["image"].as_tensor() for sample in drawn]) for drawn in samples)
    assert expected.shape == (26, 1, 240, 240)
    assert len(expected.flatten(1).unique(dim=0)) > 13  # slices differ, or the comparison would say little
    assert torch.equal(actual, expected)


@pytest.mark.slow
def test_the_diffusion_latents_are_of_the_bundles_slices(volume) -> None:
    """The bundle crops random slices of the padded volume; ours are drawn from all slices of it, as latents.

    So every crop of the bundle's must be a slice of ours, and each slice of ours must be one that it can crop.
    """
    padded = Compose(bundle_volume(32))(dict(volume))
    ours = diffusion_transforms(BRATS.data)(dict(volume))["image"].as_tensor()
    assert ours.shape == (1, 256, 256, 100)
    assert torch.equal(ours, padded["image"].as_tensor())
    border = torch.ones(256, 256, dtype=torch.bool)
    border[8:248, 8:248] = False
    assert not ours[0, border].any()

    depth_of = {slice_.numpy().tobytes(): depth for depth, slice_ in enumerate(ours[0].permute(2, 0, 1).contiguous())}
    assert len(depth_of) == 100
    crop = Compose(bundle_slices(256, 50)).set_random_state(12)
    crops = [sample["image"].as_tensor() for _ in range(12) for sample in crop(padded)]
    depths = [depth_of.get(one[0].contiguous().numpy().tobytes()) for one in crops]
    assert None not in depths
    assert {min(depths), max(depths)} == {0, 99}
    assert len(set(depths)) > 95  # 600 draws miss a given one with a chance of 0.2 %


def indexed_latents() -> Iterator[torch.Tensor]:
    """The batches of one epoch of stage 2, over latents whose one value is 100 * volume + slice."""
    settings = BRATS.diffusion_training
    mu = torch.arange(TRAINING * 100).float().view(TRAINING, 100, 1, 1)
    latents = {"mu": mu, "sigma": torch.zeros_like(mu)}
    for iteration in range(TRAINING // settings.volumes_per_batch):
        yield draw_latents(latents, settings.volumes_per_batch, settings.slices_per_volume, 0, iteration)


def test_an_epoch_has_the_bundles_batches() -> None:
    """388 iterations of one volume with 26 slices; 194 of two volumes with 50 slices each, any of the 100."""
    order = [draw_volumes(TRAINING, BRATS.autoencoder_training.volumes_per_batch, 0, i) for i in range(TRAINING)]
    assert sorted(np.concatenate(order)) == list(range(TRAINING))
    batches = [batch.flatten().long() for batch in indexed_latents()]
    assert len(batches) == 194
    volumes = [(batch // 100).unique(return_counts=True) for batch in batches]
    assert all(counts.tolist() == [50, 50] for _, counts in volumes)
    assert sorted(torch.cat([drawn for drawn, _ in volumes]).tolist()) == list(range(TRAINING))
    assert (torch.cat(batches) % 100).unique().tolist() == list(range(100))
