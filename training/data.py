"""Task01_BrainTumour, real or phantom, as batches of axial slices: the bundle's transforms in the bundle's order.

Randomness is a function of (seed, stage, iteration), never of what ran before, so a resumed run sees the batches
of an uninterrupted one.
"""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.apps import DecathlonDataset
from monai.data import MetaTensor, list_data_collate
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    DivisiblePadd,
    EnsureChannelFirstd,
    EnsureTyped,
    Lambdad,
    LoadImage,
    Orientationd,
    RandFlipd,
    RandSpatialCropSamplesd,
    ScaleIntensityRangePercentilesd,
    SqueezeDimd,
)
from tqdm import tqdm

from training.config import Data
from training.files import sha256

TASK = "Task01_BrainTumour"
Section = Literal["training", "validation"]


class DataError(ValueError):
    """Training data that cannot be used; the message names the path."""


def volume_transforms(config: Data) -> list[Any]:
    """Steps 1-8: file to one modality [1, size, size, depth] in RAS, scaled by its own min and max to [0, 1]."""
    return [
        Lambdad(keys="image", func=load_image),
        EnsureChannelFirstd(keys="image"),
        Lambdad(keys="image", func=lambda image: sound_channel(image, config.channel)),
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
        DataError: the folder or its dataset.json is missing; a volume that is listed is missing, has another shape or,
            where it is cached, holds NaN or nothing.
    """
    check_files(root, config)
    try:
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
    except KeyError as error:
        raise DataError(f"{_index(root)}: {error.args[0]}") from None
    except RuntimeError as error:
        raise _reason(error) from None


def check_files(root: Path, config: Data) -> None:
    """Read the header of every listed volume.

    Raises:
        DataError: one is missing, is no NIfTI file, or has too few channels or too small a grid; all are named.
    """
    wrong = []
    for entry in _read_index(root)["training"]:
        path = root / TASK / entry["image"]
        try:
            shape = nib.load(path).shape
        except FileNotFoundError:
            wrong.append(f"{path} does not exist")
            continue
        except nib.filebasedimages.ImageFileError as error:
            wrong.append(f"{path}: {error}")
            continue
        least = (config.size, config.size, config.depth, config.channel + 1)
        if len(shape) != 4 or any(have < want for have, want in zip(shape, least, strict=True)):
            wrong.append(f"{path} has shape {shape}, at least {least} is needed (x, y, z, channels)")
    if wrong:
        shown = "\n  ".join(wrong[:10])
        raise DataError(f"{len(wrong)} volumes cannot be used:\n  {shown}" + "\n  ..." * (len(wrong) > 10))


def check_voxels(root: Path, section: Section, config: Data) -> None:
    """Load every volume of a section that is not going to be cached, and so would be looked at late in training.

    Raises:
        DataError: one holds NaN or nothing; it is named.
    """
    volumes = open_volumes(root, section, Compose(volume_transforms(config)), config, cache=False)
    everything = range(len(volumes))
    with ThreadPoolExecutor(config.workers) as pool:
        for _ in tqdm(pool.map(partial(load_volume, volumes), everything), "checking", len(volumes), unit="volume"):
            pass


def load_volume(dataset: DecathlonDataset, index: int) -> Any:
    """What the transforms make of one volume: a dictionary with `image`, or a list of them where they draw slices.

    Raises:
        DataError: the file cannot be read, holds NaN or nothing, or upsets a transform; it is named.
    """
    try:
        return dataset[index]
    except RuntimeError as error:  # MONAI's, about whatever went wrong in a transform
        reason = _reason(error)
        if isinstance(reason, DataError):
            raise reason from None
        path = dataset.data[index]["image"]
        raise DataError(f"{path} cannot be used: {error.__cause__ or error}") from error


def load_image(path: str) -> MetaTensor:
    """MONAI's LoadImage; DataError names the file where it fails."""
    try:
        return LoadImage()(path)
    except Exception as error:  # a damaged file can upset the reader in any way
        raise DataError(f"{path} cannot be read: {error}") from error


def sound_channel(image: MetaTensor, channel: int) -> MetaTensor:
    """One channel of a volume [C, x, y, z].

    Raises:
        DataError: it holds NaN or infinity, or the same value everywhere.
    """
    modality = image[channel]
    if not torch.isfinite(modality).all():
        raise DataError(f"{image.meta['filename_or_obj']}: channel {channel} holds NaN or infinity")
    if modality.min() == modality.max():
        raise DataError(f"{image.meta['filename_or_obj']}: channel {channel} is empty, {modality.max()} everywhere")
    return modality


def _reason(error: BaseException) -> BaseException:
    """The DataError behind what MONAI makes of an exception in a transform; without one, the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DataError):
        cause = cause.__cause__
    return cause or error


def describe_data(root: Path) -> dict[str, Any]:
    """What a run was trained on: name, description and number of volumes in dataset.json, and its sha256.

    Raises:
        DataError: there is none below `root`, or one that lists no volumes.
    """
    index = _read_index(root)
    record = {key: index.get(key) for key in ("name", "description", "numTraining")}
    return {**record, "sha256": sha256(_index(root))}


def _index(root: Path) -> Path:
    path = root / TASK / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: --data is the folder that holds {TASK} "
            "(make phantom data with `python -m training.phantom --out DIR`)"
        )
    return path


def _read_index(root: Path) -> dict[str, Any]:
    """dataset.json, of which nothing is certain but the paths of its training volumes."""
    path = _index(root)
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    entries = index.get("training") if isinstance(index, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{path} has no list `training` of volumes, as the one of the Medical Segmentation Decathlon has"
        )
    if not all(isinstance(entry, dict) and isinstance(entry.get("image"), str) for entry in entries):
        raise DataError(f"{path}: every entry of `training` must be a table with the path `image` of a volume")
    return index


def derived_seed(*key: int) -> int:
    """A 32-bit seed for one use of randomness, a function of the whole key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw_volumes(count: int, volumes: int, seed: int, iteration: int) -> np.ndarray:
    """Indices of the volumes of one update; an epoch is one permutation of all `count` volumes.

    A last, smaller batch is dropped; a data set smaller than a batch is gone through several times.
    """
    epoch, step = divmod(iteration, max(1, count // volumes))
    order = np.random.default_rng(derived_seed(seed, epoch)).permutation(count)
    return order[(step * volumes + np.arange(volumes)) % count]


def slice_batches(
    dataset: DecathlonDataset, volumes_per_batch: int, seed: int, start: int, parts: range, all_parts: int
) -> Iterator[dict[int, torch.Tensor]]:
    """For the iterations `start`, `start` + 1, ..., without end: the batch of each of `parts`, out of `all_parts`.

    A part is [volumes * slices, 1, size, size] and the same whichever process draws it.
    """
    for iteration in itertools.count(start):
        drawn = draw_volumes(len(dataset), volumes_per_batch * all_parts, seed, iteration).reshape(all_parts, -1)
        batch = {}
        for part in parts:
            dataset.transform.set_random_state(derived_seed(seed, iteration, 1, part))
            volumes = [load_volume(dataset, int(i)) for i in drawn[part]]
            batch[part] = list_data_collate(volumes)["image"].as_tensor().float()
        yield batch


def fixed_slices(dataset: DecathlonDataset, volumes: int, per_volume: int) -> torch.Tensor:
    """Evenly spaced slices of the first `volumes` volumes (whole, [1, H, W, depth]): [n * per_volume, 1, H, W]."""
    slices = []
    for index in range(min(volumes, len(dataset))):
        volume = load_volume(dataset, index)["image"].as_tensor().float()
        slices.append(volume[..., evenly_spaced(volume.shape[-1], per_volume)].permute(3, 0, 1, 2))
    return torch.cat(slices)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of 0..count-1; of a volume's slices not the ends, where there is little."""
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]
