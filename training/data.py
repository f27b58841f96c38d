"""Task01_BrainTumour, real or phantom, as batches of axial slices: the bundle's transforms in the bundle's order.

Randomness is a function of (seed, stage, iteration), never of what ran before, so a resumed run sees the batches
of an uninterrupted one.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor, list_data_collate
from monai.data.utils import correct_nifti_header_if_necessary
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
    Transform,
)
from numpy.typing import NDArray
from tqdm import tqdm

from training.config import Data
from training.decathlon import DataError, Section, channel_of, read_index, section_of
from training.file_problems import describe_file, list_problems
from training.nifti import TOLERANCE, NiftiError, check_affine, check_whole, in_mm, open_nifti, spacing, to_ras

Item = dict[str, Any]  # what MONAI's transforms take and give


def volume_transforms(config: Data) -> list[Any]:
    """Steps 1-8: file to one modality [1, size, size, depth] in RAS, scaled by its own min and max to [0, 1]."""
    return [
        Lambdad(keys="image", func=load_image),
        EnsureChannelFirstd(keys="image"),
        SelectChannel(config.channel),
        EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
        EnsureTyped(keys="image"),
        Orientationd(keys="image", axcodes="RAS", labels=None),
        CenterSpatialCropd(keys="image", roi_size=(config.size, config.size, config.depth)),
        Lambdad(keys="image", func=sound),
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


class Volumes(CacheDataset):
    """The volumes of one section; `listed` are those of both, before any transform."""

    def __init__(
        self, listed: Sequence[Item], chosen: Sequence[Item], transform: Compose, cache_rate: float, workers: int
    ) -> None:
        self.listed = listed
        super().__init__(chosen, transform, cache_rate=cache_rate, num_workers=workers)


def open_volumes(root: Path, section: Section, transform: Compose, config: Data, cache: bool = True) -> Volumes:
    """The volumes below `root`/Task01_BrainTumour, split 80/20 by MONAI's seed-0 shuffle.

    Each is a dictionary: `image` the path, or what `transform` makes of it, `name`, which no other volume has, and
    `channel`.

    Raises:
        DataError: the folder or its dataset.json is missing; a volume that is listed is missing, or its header is not
            what training needs; a volume that is cached cannot be read, or what training would see of it holds NaN or
            nothing. All of them are named.
    """
    index = read_index(root)
    channel = channel_of(index, config)
    check_headers([volume.path for volume in index.volumes], config, channel)
    listed = [{"image": str(volume.path), "name": volume.name, "channel": channel} for volume in index.volumes]
    chosen = [listed[number] for number in section_of(len(listed), section)]
    cache_rate = config.cache_rate if cache else 0.0
    try:
        return Volumes(listed, chosen, transform, cache_rate, config.workers)
    except RuntimeError as error:  # MONAI's, about whatever went wrong in a transform
        raise _everything_wrong(listed, transform, config.workers, error) from error


def check_headers(paths: Sequence[Path], config: Data, channel: int) -> None:
    """Read the header of every volume.

    Raises:
        DataError: one is missing, is no sound NIfTI file, has voxels of another size, too few channels or too small a
            grid; all are named, and so are all that are damaged further on.
    """
    found = {path: _problem(path, partial(check_header, config=config, channel=channel)) for path in paths}
    if any(found.values()):
        others = [path for path, problem in found.items() if problem is None]
        with ThreadPoolExecutor(config.workers) as pool:
            found.update(zip(others, pool.map(partial(_problem, check=check_whole), others), strict=True))
        raise DataError(list_problems("volumes", [problem for problem in found.values() if problem is not None]))


def _problem(path: Path, check: Callable[[Path], None]) -> str | None:
    try:
        check(path)
    except NiftiError as error:
        return f"{path}: {error}"
    except Exception as error:  # a damaged file can upset the reader in any way
        return describe_file(path, error)
    return None


def check_header(path: Path, config: Data, channel: int) -> None:
    """Raises NiftiError where training cannot work with what it would see of a file, its axes turned to RAS."""
    image = open_nifti(path)
    if len(image.shape) != 4:
        raise NiftiError(f"it has the shape {image.shape}, and four axes are needed (x, y, z, channels)")
    if config.spacing == "1mm" and abs(spacing(image) - 1).max() > TOLERANCE:
        raise NiftiError(
            f"its voxels are {in_mm(spacing(image))} (Right, Anterior, Superior), and 1 x 1 x 1 mm is needed: resample "
            "it, or set data.spacing to any"
        )
    image = correct_nifti_header_if_necessary(image)  # as MONAI's reader does
    check_affine(image.affine)
    shape = (*(int(size) for size in to_ras(image, np.array(image.shape[:3]))), image.shape[3])
    least = (config.size, config.size, config.depth, channel + 1)
    if any(have < want for have, want in zip(shape, least, strict=True)):
        raise NiftiError(f"it has the shape {shape}, at least {least} is needed (Right, Anterior, Superior, channels)")


def check_voxels(root: Path, section: Section, config: Data) -> None:
    """Load every volume of a section that is not going to be cached, and so would be looked at late in training.

    Raises:
        DataError: what training would see of one holds NaN or nothing; all are named.
    """
    volumes = open_volumes(root, section, Compose(volume_transforms(config)), config, cache=False)
    if wrong := _wrong(volumes.data, volumes.transform, config.workers):
        looked_at = {item["image"] for item in volumes.data}
        others = [item for item in volumes.listed if item["image"] not in looked_at]
        raise DataError(list_problems("volumes", wrong + _wrong(others, volumes.transform, config.workers)))


def load_volume(dataset: Volumes, index: int) -> Any:
    """What the transforms make of one volume: a dictionary with `image`, or a list of them where they draw slices.

    Raises:
        DataError: the file cannot be read, holds NaN or nothing, or upsets a transform. It is named, and so are all
            others of the data set of which that is true.
    """
    try:
        return dataset[index]
    except RuntimeError as error:  # MONAI's, about whatever went wrong in a transform
        raise _everything_wrong(dataset.listed, dataset.transform, dataset.num_workers, error) from error


def _everything_wrong(listed: Sequence[Item], transform: Compose, workers: int, first: RuntimeError) -> DataError:
    """After the first volume that cannot be loaded: a look at all of both sections, so they can be mended together."""
    return DataError(list_problems("volumes", _wrong(listed, transform, workers) or [_reason(first)]))


def _wrong(items: Sequence[Item], transform: Compose, workers: int) -> list[str]:
    """A line on each volume that cannot be loaded."""

    def look(item: Item) -> str | None:
        try:
            transform(dict(item))
        except RuntimeError as error:
            reason = _reason(error)
            return reason if reason.startswith(item["image"]) else f"{item['image']} cannot be used: {reason}"
        return None

    with ThreadPoolExecutor(workers) as pool:
        looked = tqdm(pool.map(look, items), "checking", len(items), unit="volume")
        return [line for line in looked if line is not None]


def load_image(path: str) -> MetaTensor:
    """MONAI's LoadImage; DataError names the file where it fails."""
    try:
        check_whole(Path(path))
        return LoadImage()(path)
    except Exception as error:  # a damaged file can upset the reader in any way
        raise DataError(describe_file(Path(path), error)) from error


class SelectChannel(Transform):
    """One channel [x, y, z] of a volume [C, x, y, z]: the item's `channel`, else that of the configuration."""

    def __init__(self, channel: int) -> None:
        self.channel = channel

    def __call__(self, item: Item) -> Item:
        channel = item.get("channel", self.channel)
        image = item["image"][channel]
        image.meta["channel"] = channel
        return {**item, "image": image}


def sound(image: MetaTensor) -> MetaTensor:
    """What training sees of a volume.

    Raises:
        DataError: it holds NaN or infinity, or the same value everywhere.
    """
    where = f"{image.meta['filename_or_obj']}: channel {image.meta['channel']}"
    if not torch.isfinite(image).all():
        raise DataError(f"{where} holds NaN or infinity")
    if image.min() == image.max():
        raise DataError(f"{where} is empty, {image.max()} everywhere in the part that is used")
    return image


def _reason(error: BaseException) -> str:
    """What the DataError says behind what MONAI makes of an exception in a transform; without one, its cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DataError):
        cause = cause.__cause__
    return str(cause or error.__cause__ or error)


def derived_seed(*key: int) -> int:
    """A 32-bit seed for one use of randomness, a function of the whole key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw_volumes(count: int, volumes: int, seed: int, iteration: int) -> NDArray[np.int64]:
    """Indices of the volumes of one update; an epoch is one permutation of all `count` volumes.

    A last, smaller batch is dropped; a data set smaller than a batch is gone through several times.
    """
    epoch, step = divmod(iteration, max(1, count // volumes))
    order = np.random.default_rng(derived_seed(seed, epoch)).permutation(count)
    return order[(step * volumes + np.arange(volumes)) % count]


def slice_batches(
    dataset: Volumes, volumes_per_batch: int, seed: int, start: int, parts: range, all_parts: int
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


def fixed_slices(dataset: Volumes, volumes: int, per_volume: int) -> torch.Tensor:
    """Evenly spaced slices of the first `volumes` volumes (whole, [1, H, W, depth]): [n * per_volume, 1, H, W]."""
    slices = []
    for index in range(min(volumes, len(dataset))):
        volume = load_volume(dataset, index)["image"].as_tensor().float()
        slices.append(volume[..., evenly_spaced(volume.shape[-1], per_volume)].permute(3, 0, 1, 2))
    return torch.cat(slices)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of 0..count-1; of a volume's slices not the ends, where there is little."""
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]
