"""The label maps of Task01_BrainTumour at the size of the latents: read once, kept on disk, drawn with the latents."""

from pathlib import Path

import torch
from monai.transforms import Compose
from torch import Tensor
from tqdm import tqdm

from training.conditioning import condition_of, label_counts
from training.config import Data
from training.data import label_transforms, load_volume, open_volumes, padded
from training.decathlon import DataError, Index, Section, read_index
from training.file_problems import describe_file, list_problems
from training.files import sha256
from training.latents import cached_tensors, draw_slices, sees_labels
from training.nifti import NiftiError, open_nifti
from training.processes import Processes

LABELS_FILE = "labels.safetensors"
"""The file of `cached_labels` in the folder of a run."""


def encode_labels(root: Path, section: Section, config: Data) -> Tensor:
    """`label_counts` of each slice of a section: uint8 [volumes, depth, 3, 64, 64].

    Raises:
        DataError: a volume has no label map, or one that cannot be used; it is named.
    """
    check_label_files(read_index(root))
    transform = Compose([*label_transforms(config), padded("label")])
    volumes = open_volumes(root, section, transform, config, cache=False)
    bar = tqdm(range(len(volumes)), desc="reading labels", unit="volume")
    return torch.stack([label_counts(_slices(load_volume(volumes, index)["label"])) for index in bar])


def _slices(volume: Tensor) -> Tensor:
    return torch.as_tensor(volume)[0].permute(2, 0, 1)  # [depth, padded, padded]


def check_label_files(index: Index) -> None:
    """Read the header of every label map.

    Raises:
        DataError: a volume has none in dataset.json, or its grid is not that of its image; all are named.
    """
    problems = []
    for volume in index.volumes:
        try:
            if volume.label is None:
                problems.append(f"{index.path} names no label map of {volume.path}")
            elif (shape := open_nifti(volume.label).shape) != (grid := open_nifti(volume.path).shape[:3]):
                problems.append(f"{volume.label} has the shape {shape}, and its image {grid}")
        except NiftiError as error:
            problems.append(f"{volume.label}: {error}")
        except Exception as error:  # a damaged file can make the reader fail in any way
            problems.append(describe_file(volume.label or volume.path, error))
    if problems:
        raise DataError(list_problems("label maps", problems, "each volume needs one, with the grid of its image"))


def cached_labels(root: Path, config: Data, processes: Processes, path: Path, index: Index) -> Tensor:
    """`encode_labels` of the training section through the file `path`, as `cached_latents`."""
    key = f"{sha256(index.path)} {config.size} {config.depth}"
    return cached_tensors(path, key, processes, lambda: {"labels": encode_labels(root, "training", config)})["labels"]


def draw_condition(
    labels: Tensor,
    lesions: Tensor,
    volumes_per_batch: int,
    slices_per_volume: int,
    seed: int,
    iteration: int,
    part: int = 0,
    all_parts: int = 1,
) -> Tensor:
    """The condition of the slices that `draw_latents` draws with the same `lesions`: [rows, CHANNELS, 64, 64].

    Float32; zeros for the half of the rows that see no map. So one network learns both (Ho & Salimans 2022, section
    3.2). That the others mostly show a lesion changes how often a map comes up, and not which images belong to it.
    labels: of `encode_labels`; lesions: their `lesions_in`.
    """
    share = (volumes_per_batch, slices_per_volume, seed, iteration, part, all_parts)
    volumes, slices, _ = draw_slices(labels.shape[0], labels.shape[1], *share, lesions)
    condition = condition_of(labels[volumes, slices].flatten(0, 1))
    return condition * sees_labels(len(condition), iteration)[:, None, None, None]


def lesions_in(labels: Tensor) -> Tensor:
    """Where a slice of `encode_labels` shows a lesion: bool [volumes, depth]."""
    return labels.flatten(2).any(2)
