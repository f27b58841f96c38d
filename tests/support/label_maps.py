"""Label maps and data sets with labels, small and made up, for tests of the client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from brats_ldm_client.labels import LabelLibrary

SIDE = 240
Array = np.ndarray


def disc(x: float, y: float, radius: float) -> Array:
    """A mask [240, 240]."""
    right, front = np.mgrid[:SIDE, :SIDE]
    return (right - x) ** 2 + (front - y) ** 2 <= radius**2


def lesion(x: float, y: float, radius: float) -> Array:
    """A label map uint8 [240, 240] with all labels: enhancing tumour around a core, in an oedema that is longer."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[disc(x, y, radius) | disc(x + radius, y, radius / 2)] = 1
    labels[disc(x, y, radius / 2)] = 3
    labels[disc(x, y, radius / 4)] = 2
    return labels


def library(count: int = 12) -> LabelLibrary:
    """Lesions of many sizes on the right side of brains of two sizes, as at two heights."""
    maps = [lesion(150 + 2 * i, 110 + 3 * i, 8 + i) for i in range(count)]
    brains = [disc(120 + i % 2, 120, 90 if i % 3 else 75) for i in range(count)]
    return LabelLibrary(np.stack(maps), np.stack(brains))


def save(path: Path, array: Array, affine: Array | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def task01(folder: Path, volumes: int = 5, depth: int = 8, lesions: Sequence[int] = (3, 4, 7)) -> Path:
    """A Task01_BrainTumour of volumes [240, 240, depth, 2] with lesions in some slices; FLAIR is the second channel."""
    root = folder / "Task01_BrainTumour"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    names = [f"BRATS_{i + 1:03d}.nii.gz" for i in range(volumes)]
    brain = disc(120, 120, 90)
    flair = np.where(brain, 100, 0)
    flair[disc(120, 120, 5)] = 0  # a ventricle
    for i, name in enumerate(names):
        labels = np.zeros((SIDE, SIDE, depth), np.uint8)
        for height in lesions:
            labels[:, :, height] = lesion(130 + i, 100 + height, 12)
        image = np.stack([np.ones(labels.shape), np.repeat(flair[..., None], depth, 2)], axis=-1).astype(np.int16)
        save(root / "imagesTr" / name, image)
        save(root / "labelsTr" / name, labels)
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T1w", "1": "FLAIR"}, "training": pairs}))
    return folder
