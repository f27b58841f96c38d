"""Task01_BrainTumour, real or phantom, as batches of axial slices: the bundle's transforms in the bundle's order.

Random numbers depend on (seed, stage, iteration) alone and not on what ran before, so a resumed run sees the same
batches as an uninterrupted one.
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

from training.conditioning import LABELS
from training.config import Data
from training.decathlon import DataError, Section, channel_of, read_index, section_of
from training.file_problems import describe_file, list_problems
from training.nifti import TOLERANCE, NiftiError, check_affine, check_whole, in_mm, open_nifti, spacing, to_ras

Item = dict[str, Any]  # the input and output of MONAI's transforms


def volume_transforms(config: Data) -> list[Any]:
    """Steps 1-8: file to one modality [1, size, size, depth] in RAS, scaled by its own min and max to [0, 1]."""
    return [
        Lambdad(keys="image", func=load_image),
        EnsureChannelFirstd(keys="image"),
        SelectChannel(config.channel),
        *placed("image", config),
        Lambdad(keys="image", func=checked),
        ScaleIntensityRangePercentilesd(keys="image", lower=0, upper=100, b_min=0, b_max=1),
    ]


def placed(key: str, config: Data) -> list[Any]:
    """One channel [x, y, z] to [1, size, size, depth] in RAS; moves voxels and changes none."""
    return [
        EnsureChannelFirstd(keys=key, channel_dim="no_channel"),
        EnsureTyped(keys=key),
        Orientationd(keys=key, axcodes="RAS", labels=None),
        CenterSpatialCropd(keys=key, roi_size=(config.size, config.size, config.depth)),
    ]


def label_transforms(config: Data) -> list[Any]:
    """The label map of a volume, uint8 [1, size, size, depth], voxel for voxel beside the image of `volume_transforms`.

    Nothing here interpolates.
    """
    return [
        Lambdad(keys="label", func=load_image),
        *placed("label", config),
        Lambdad(keys="label", func=checked_labels),
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

    The bundle crops random slices here and flips nothing, so all slices can be encoded once and drawn as latents
    (`training.latents`).
    """
    return Compose([*volume_transforms(config), padded("image")])


def padded(key: str) -> DivisiblePadd:
    """Zeros on both sides of a slice, up to a multiple of 32 pixels."""
    return DivisiblePadd(keys=key, k=(32, 32, 1))


class Volumes(CacheDataset):
    """The volumes of one section. `listed` holds the volumes of both sections, before any transform."""

    def __init__(
        self, listed: Sequence[Item], chosen: Sequence[Item], transform: Compose, cache_rate: float, workers: int
    ) -> None:
        self.listed = listed
        super().__init__(chosen, transform, cache_rate=cache_rate, num_workers=workers)


def open_volumes(root: Path, section: Section, transform: Compose, config: Data, cache: bool = True) -> Volumes:
    """The volumes below `root`/Task01_BrainTumour, split 80/20 by MONAI's seed-0 shuffle.

    A volume is a dictionary: `image`, which is the path or the result of `transform`, a unique `name`, `channel`, and
    `label` in the same way if dataset.json names a label map.

    Raises:
        DataError: the folder or its dataset.json is missing; a listed volume is missing, or its header does not fit
            training; a cached volume cannot be read, or the part that training uses holds NaN or is empty. All of them
            are named.
    """
    index = read_index(root)
    channel = channel_of(index, config)
    check_headers([volume.path for volume in index.volumes], config, channel)
    listed = [
        {"image": str(volume.path), "name": volume.name, "channel": channel}
        | ({"label": str(volume.label)} if volume.label else {})
        for volume in index.volumes
    ]
    chosen = [listed[number] for number in section_of(len(listed), section)]
    cache_rate = config.cache_rate if cache else 0.0
    try:
        return Volumes(listed, chosen, transform, cache_rate, config.workers)
    except RuntimeError as error:  # MONAI raises it for any error in a transform
        raise _all_faulty(listed, transform, config.workers, error) from error


def check_headers(paths: Sequence[Path], config: Data, channel: int) -> None:
    """Read the header of every volume.

    Raises:
        DataError: a file is missing, is not a valid NIfTI file, has voxels of another size, too few channels or too
            small a grid. All of these are named, and also all files that are damaged behind their header.
    """
    problems = {path: _problem(path, partial(check_header, config=config, channel=channel)) for path in paths}
    if any(problems.values()):
        others = [path for path, problem in problems.items() if problem is None]
        with ThreadPoolExecutor(config.workers) as pool:
            problems.update(zip(others, pool.map(partial(_problem, check=check_whole), others), strict=True))
        raise DataError(list_problems("volumes", [problem for problem in problems.values() if problem is not None]))


def _problem(path: Path, check: Callable[[Path], None]) -> str | None:
    try:
        check(path)
    except NiftiError as error:
        return f"{path}: {error}"
    except Exception as error:  # a damaged file can make the reader fail in any way
        return describe_file(path, error)
    return None


def check_header(path: Path, config: Data, channel: int) -> None:
    """Raises NiftiError if training cannot use a file, whose axes it turns to RAS."""
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
    """Load every volume of a section that will not be cached. Without this, errors would appear late in training.

    Raises:
        DataError: the part of a volume that training uses holds NaN or is empty; all such volumes are named.
    """
    volumes = open_volumes(root, section, Compose(volume_transforms(config)), config, cache=False)
    if faulty := _faulty(volumes.data, volumes.transform, config.workers):
        checked_paths = {item["image"] for item in volumes.data}
        others = [item for item in volumes.listed if item["image"] not in checked_paths]
        raise DataError(list_problems("volumes", faulty + _faulty(others, volumes.transform, config.workers)))


def load_volume(dataset: Volumes, index: int) -> Any:
    """One volume after the transforms: a dictionary with `image`, or a list of them where the transforms draw slices.

    Raises:
        DataError: the file cannot be read, holds NaN, is empty, or makes a transform fail. The message names it and all
            other volumes of the data set with such a fault.
    """
    try:
        return dataset[index]
    except RuntimeError as error:  # MONAI raises it for any error in a transform
        raise _all_faulty(dataset.listed, dataset.transform, dataset.num_workers, error) from error


def _all_faulty(listed: Sequence[Item], transform: Compose, workers: int, first: RuntimeError) -> DataError:
    """Check all volumes of both sections after the first failure, so that the user can correct all of them at once."""
    return DataError(list_problems("volumes", _faulty(listed, transform, workers) or [_reason(first)]))


def _faulty(items: Sequence[Item], transform: Compose, workers: int) -> list[str]:
    """One line for each volume that cannot be loaded."""

    def check(item: Item) -> str | None:
        try:
            transform(dict(item))
        except RuntimeError as error:
            reason = _reason(error)
            return reason if reason.startswith(item["image"]) else f"{item['image']} cannot be used: {reason}"
        return None

    with ThreadPoolExecutor(workers) as pool:
        lines = tqdm(pool.map(check, items), "checking", len(items), unit="volume")
        return [line for line in lines if line is not None]


def load_image(path: str) -> MetaTensor:
    """Load as MONAI's LoadImage does. Raises DataError, which names the file."""
    try:
        check_whole(Path(path))
        return LoadImage()(path)
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise DataError(describe_file(Path(path), error)) from error


class SelectChannel(Transform):
    """Takes one channel [x, y, z] of a volume [C, x, y, z]: the `channel` of the item, or else of the configuration."""

    def __init__(self, channel: int) -> None:
        self.channel = channel

    def __call__(self, item: Item) -> Item:
        channel = item.get("channel", self.channel)
        image = item["image"][channel]
        image.meta["channel"] = channel
        return {**item, "image": image}


def checked(image: MetaTensor) -> MetaTensor:
    """The image itself, which is the part of a volume that training uses.

    Raises:
        DataError: it holds NaN or infinity, or the same value everywhere.
    """
    where = f"{image.meta['filename_or_obj']}: channel {image.meta['channel']}"
    if not torch.isfinite(image).all():
        raise DataError(f"{where} holds NaN or infinity")
    if image.min() == image.max():
        raise DataError(f"{where} is empty, {image.max()} everywhere in the part that is used")
    return image


def checked_labels(labels: MetaTensor) -> MetaTensor:
    """The label map itself as uint8.

    Raises:
        DataError: it holds anything but 0 and the numbers of LABELS.
    """
    others = sorted(set(torch.unique(labels).tolist()) - {0, *LABELS})
    if others:
        allowed = ", ".join(f"{number} {name}" for number, name in LABELS.items())
        raise DataError(f"{labels.meta['filename_or_obj']} holds {others[0]:g}: a label is 0 or one of {allowed}")
    return labels.to(torch.uint8)


def _reason(error: BaseException) -> str:
    """The text of the DataError that MONAI has wrapped in its own exceptions; without one, the text of the cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DataError):
        cause = cause.__cause__
    return str(cause or error.__cause__ or error)


def derived_seed(*key: int) -> int:
    """A 32-bit seed for one use of random numbers; it depends on the whole key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw_volumes(count: int, volumes: int, seed: int, iteration: int) -> NDArray[np.int64]:
    """Indices of the volumes of one update; an epoch is one permutation of all `count` volumes.

    A smaller batch at the end is dropped. A data set smaller than a batch is used several times in it.
    """
    epoch, step = divmod(iteration, max(1, count // volumes))
    order = np.random.default_rng(derived_seed(seed, epoch)).permutation(count)
    return order[(step * volumes + np.arange(volumes)) % count]


def slice_batches(
    dataset: Volumes, volumes_per_batch: int, seed: int, start: int, parts: range, all_parts: int
) -> Iterator[dict[int, torch.Tensor]]:
    """The batches of `parts`, out of `all_parts`, for the iterations `start`, `start` + 1, ..., without end.

    A part is [volumes * slices, 1, size, size]. It does not depend on the process that draws it.
    """
    for iteration in itertools.count(start):
        drawn = draw_volumes(len(dataset), volumes_per_batch * all_parts, seed, iteration).reshape(all_parts, -1)
        batch = {}
        for part in parts:
            dataset.transform.set_random_state(derived_seed(seed, iteration, 1, part))
            volumes = [load_volume(dataset, int(i)) for i in drawn[part]]
            batch[part] = list_data_collate(volumes)["image"].as_tensor().float()
        yield batch


def fixed_slices(dataset: Volumes, volumes: int, per_volume: int, key: str = "image") -> torch.Tensor:
    """Evenly spaced slices of the first `volumes` volumes (whole, [1, H, W, depth]): [n * per_volume, 1, H, W].

    key: `image`, or `label` for the label maps of the same slices.
    """
    slices = []
    for index in range(min(volumes, len(dataset))):
        volume = load_volume(dataset, index)[key].as_tensor().float()
        slices.append(volume[..., evenly_spaced(volume.shape[-1], per_volume)].permute(3, 0, 1, 2))
    return torch.cat(slices)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of 0..count-1. The ends of a volume show little and are left out."""
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]
