"""Slices with their label maps: those of the training data, and synthetic ones as the client writes them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.transforms import Compose
from numpy.typing import NDArray
from tqdm import tqdm

from training.conditioning import LABELS
from training.config import Data
from training.data import label_transforms, load_volume, open_volumes, volume_transforms
from training.decathlon import TASK, Section, read_index
from training.evaluation import FEWEST
from training.evaluation.slices import SliceError, read_images, read_nifti, read_planes
from training.file_problems import list_problems
from training.labels import check_label_files

# Drawn of each volume, as far as it has them. Neighbouring slices are alike, so more of a volume would teach little.
WITH_LESION, WITHOUT_LESION = 8, 2
ADVICE = (
    "a pair is an image, 240 x 240 with values in [0, 1], and a label map of its size that holds 0 and "
    + ", ".join(f"{number} {name}" for number, name in LABELS.items())
)


class Pairs(NamedTuple):
    """Axial slices and their label maps; axes point to patient Right and Anterior."""

    images: NDArray[np.floating[Any]]  # [n, 240, 240] in [0, 1]; float16 for whole sections, else float32
    maps: NDArray[np.uint8]  # [n, 240, 240]; 0 or one of LABELS
    names: list[str]  # of the file, with an index if it holds several slices
    files: NDArray[np.int64]  # [n], number of the file; for real slices of the volume

    def part(self, chosen: NDArray[Any]) -> "Pairs":
        """The pairs with these numbers, or where a mask [n] is true; images become float32."""
        numbers = np.arange(len(self.names))[chosen]
        names = [self.names[i] for i in numbers]
        return Pairs(self.images[numbers].astype(np.float32), self.maps[numbers], names, self.files[numbers])

    def with_lesion(self) -> NDArray[np.bool_]:
        """[n]: whether the map holds a label."""
        return self.maps.any((1, 2))


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of `parts`, whose files get new numbers."""
    firsts = np.cumsum([0, *(part.files.max() + 1 for part in parts[:-1])])
    return Pairs(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.maps for part in parts]),
        [name for part in parts for name in part.names],
        np.concatenate([part.files + first for part, first in zip(parts, firsts, strict=True)]),
    )


def read_pairs(folder: Path) -> Pairs:
    """Synthetic pairs in the layout of Task01_BrainTumour. `folder` holds that folder, or is it.

    Raises:
        SliceError: no such folder, too few pairs, no map with a label, or files that cannot be used; these are named.
        DataError: dataset.json cannot be used.
    """
    whole = folder.resolve()
    root = whole.parent if whole.name == TASK else folder
    if not (root / TASK / "dataset.json").is_file():
        raise SliceError(f"--pairs {folder} holds no {TASK}/dataset.json: give the folder of pairs of the client")
    volumes = read_index(root).volumes
    parts, problems = [], []
    for volume in tqdm(volumes, desc="reading pairs", unit="pair", leave=False):
        try:
            parts.append(_pair(volume.path, volume.label, volume.name))
        except SliceError as error:
            problems.append(str(error))
    if problems:
        raise SliceError(list_problems("pairs", problems, ADVICE))
    pairs = joined(parts)
    if len(pairs.names) < FEWEST:
        raise SliceError(f"--pairs {folder} holds {len(pairs.names)} pairs: at least {FEWEST} are needed")
    if not pairs.maps.any():
        raise SliceError(f"--pairs {folder}: no label map holds a lesion, so there is nothing to follow")
    return pairs


def _pair(image: Path, label: Path | None, name: str) -> Pairs:
    if label is None:
        raise SliceError(f"{image} has no label map in dataset.json")
    images, numbers = read_images(image, read_nifti), read_planes(label, read_nifti)
    if len(images) != len(numbers):
        raise SliceError(f"{label} holds {len(numbers)} maps, and its image {len(images)} slices")
    if others := set(np.unique(numbers).tolist()) - {0, *LABELS}:
        raise SliceError(f"{label} holds {min(others):g}")
    names = [name] if len(images) == 1 else [f"{name}[{index}]" for index in range(len(images))]
    return Pairs(images, numbers.astype(np.uint8), names, np.zeros(len(images), np.int64))


def read_section(data: Path, section: Section) -> Pairs:
    """All slices of a section as the networks see them, images as float16: 0.17 MB of memory a slice.

    Raises:
        DataError: the data folder, or an image or label map in it, cannot be used.
        SliceError: no slice has a lesion.
    """
    config = Data()
    check_label_files(read_index(data))
    transform = Compose([*volume_transforms(config), *label_transforms(config)])
    volumes = open_volumes(data, section, transform, config, cache=False)

    shape = (len(volumes), config.depth, config.size, config.size)
    images, maps = np.empty(shape, np.float16), np.empty(shape, np.uint8)

    def read(index: int) -> None:
        item = load_volume(volumes, index)
        for kept, key in ((images, "image"), (maps, "label")):
            kept[index] = np.asarray(item[key])[0].transpose(2, 0, 1)

    numbers = range(len(volumes))
    with ThreadPoolExecutor(config.workers) as pool:
        list(tqdm(pool.map(read, numbers), f"reading {section} volumes", len(numbers), unit="volume", leave=False))
    if not maps.any():
        raise SliceError(
            f"--data {data}: no label map of the {section} section ({len(volumes)} volumes) holds a lesion"
        )
    names = [f"{item['name']}[{index}]" for item in volumes.data for index in range(config.depth)]
    files = np.repeat(np.arange(len(volumes)), config.depth)
    return Pairs(images.reshape(-1, *shape[2:]), maps.reshape(-1, *shape[2:]), names, files)


def draw(pairs: Pairs, seed: int) -> Pairs:
    """A few slices of each file, most of them with a lesion; the seed decides which."""
    rng, lesion = np.random.default_rng(seed), pairs.with_lesion()
    chosen = [
        rng.permutation(np.flatnonzero((pairs.files == number) & kind))[:count]
        for number in range(pairs.files.max() + 1)
        for kind, count in ((lesion, WITH_LESION), (~lesion, WITHOUT_LESION))
    ]
    return pairs.part(np.concatenate(chosen))
