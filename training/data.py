"""Task01_BrainTumour, real or phantom, as batches of axial slices: the bundle's transforms in the bundle's order.

Randomness is a function of (seed, stage, iteration), never of what ran before, so a resumed run sees the batches
of an uninterrupted one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.apps import DecathlonDataset
from monai.data import list_data_collate
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

from training.checkpoint import sha256
from training.config import Data

TASK = "Task01_BrainTumour"
Section = Literal["training", "validation"]


class DataError(ValueError):
    """Training data that cannot be used; the message names the path."""


def volume_transforms(config: Data) -> list[Any]:
    """Steps 1-8: file to one modality [1, size, size, depth] in RAS, scaled by its own min and max to [0, 1]."""
    return [
        LoadImaged(keys="image"),
        EnsureChannelFirstd(keys="image"),
        Lambdad(keys="image", func=lambda image: image[config.channel]),
        EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
        EnsureTyped(keys="image"),
        Orientationd(keys="image", axcodes="RAS", labels=None),
        CenterSpatialCropd(keys="image", roi_size=(config.size, config.size, config.depth)),
        ScaleIntensityRangePercentilesd(keys="image", lower=0, upper=100, b_min=0, b_max=1),
    ]


def autoencoder_transforms(config: Data, slices: int) -> Compose:
    """Stage 1: `slices` random axial slices [1, size, size] of a volume, flipped at random."""
    return Compose(
        [
            *volume_transforms(config),
            DivisiblePadd(keys="image", k=(4, 4, 1)),
            RandSpatialCropSamplesd(
                keys="image", roi_size=(config.size, config.size, 1), num_samples=slices, random_size=False
            ),
            SqueezeDimd(keys="image", dim=3),
            RandFlipd(keys="image", prob=0.5, spatial_axis=0),
            RandFlipd(keys="image", prob=0.5, spatial_axis=1),
        ]
    )


def diffusion_transforms(config: Data) -> Compose:
    """Stage 2: the whole volume [1, 256, 256, depth].

    The bundle crops random slices here and flips nothing, so the slices may as well be encoded once and drawn as
    latents (`training.latents`).
    """
    pad = DivisiblePadd(keys="image", k=(32, 32, 1))
    return Compose([*volume_transforms(config), pad])


def open_volumes(
    root: Path, section: Section, transform: Compose, config: Data, cache: bool = True
) -> DecathlonDataset:
    """The volumes below `root`/Task01_BrainTumour, split 80/20 by MONAI's seed-0 shuffle.

    Raises:
        DataError: the folder or its dataset.json is missing.
    """
    _index(root)
    return DecathlonDataset(
        root_dir=root,
        task=TASK,
        section=section,
        transform=transform,
        download=False,
        seed=0,
        val_frac=0.2,
        cache_rate=config.cache_rate if cache else 0.0,
        num_workers=config.workers,
    )


def describe_data(root: Path) -> dict[str, Any]:
    """What a run was trained on: name, description and number of volumes in dataset.json, and its sha256.

    Raises:
        DataError: there is none below `root`.
    """
    path = _index(root)
    index = json.loads(path.read_text())
    record = {key: index.get(key) for key in ("name", "description", "numTraining")}
    return {**record, "sha256": sha256(path)}


def _index(root: Path) -> Path:
    path = root / TASK / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: --data is the folder that holds {TASK} "
            "(make phantom data with `python -m training.phantom --out DIR`)"
        )
    return path


def derived_seed(*key: int) -> int:
    """A 32-bit seed for one use of randomness, a function of the whole key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw_volumes(count: int, volumes_per_batch: int, seed: int, iteration: int) -> np.ndarray:
    """Indices of the volumes of one batch; an epoch is one permutation of all `count` volumes.

    A last, smaller batch is dropped, but for a data set smaller than a batch.
    """
    steps = max(1, count // volumes_per_batch)
    epoch, step = divmod(iteration, steps)
    order = np.random.default_rng(derived_seed(seed, epoch)).permutation(count)
    return order[step * volumes_per_batch : (step + 1) * volumes_per_batch]


def slice_batches(dataset: DecathlonDataset, volumes_per_batch: int, seed: int, start: int) -> Iterator[torch.Tensor]:
    """Batches [volumes * slices, 1, size, size] for the iterations `start`, `start` + 1, ..., without end."""
    iteration = start
    while True:
        dataset.transform.set_random_state(derived_seed(seed, iteration, 1))
        volumes = [dataset[int(i)] for i in draw_volumes(len(dataset), volumes_per_batch, seed, iteration)]
        yield list_data_collate(volumes)["image"].as_tensor().float()
        iteration += 1
