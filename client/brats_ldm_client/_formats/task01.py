"""Images and labels as a data set of the Medical Segmentation Decathlon, which MONAI and nnU-Net read.

Names and bytes only; nothing is written here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._errors import InvalidRequest
from ..labels.maps import NAMES
from ..pictures import NOTICE

FOLDER = "Task01_BrainTumour"
INDEX = f"{FOLDER}/dataset.json"
TEST = f"{FOLDER}/imagesTs"
"""A folder that nnU-Net wants, and that stays empty."""
_MADE_BY = f"{NOTICE}. FLAIR slices of the brain from a latent diffusion model, with the labels they were made with"
_PREFIX, _PARTS = "BRATS_SYN_", ("imagesTr", "labelsTr")


def pair_names(stem: str) -> tuple[str, str]:
    """Image and labels of a slice: `slice_seed000000042` is BRATS_SYN_seed000000042.nii.gz in two folders."""
    name = f"{_PREFIX}{stem.removeprefix('slice_')}.nii.gz"
    return f"{FOLDER}/imagesTr/{name}", f"{FOLDER}/labelsTr/{name}"


def check_own(folder: Path) -> None:
    """Raises InvalidRequest if the data set in a folder is of somebody else."""
    path = folder / INDEX
    others = [each for part in _PARTS for each in (folder / FOLDER / part).glob("[!.]*")]
    foreign = [each for each in others if not each.name.startswith(_PREFIX)]
    if foreign or (path.is_file() and _description(path) != _MADE_BY):
        raise InvalidRequest(f"{folder / FOLDER} is another data set: choose another folder")


def _description(path: Path) -> object:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content.get("description") if isinstance(content, dict) else None


def dataset(folder: Path) -> bytes:
    """dataset.json of the pairs that are in a folder, by their names."""
    there = [{path.name for path in (folder / FOLDER / part).glob(f"{_PREFIX}*.nii.gz")} for part in _PARTS]
    names = sorted(set.intersection(*there))
    content: dict[str, Any] = {
        "name": "BRATS",
        "description": _MADE_BY,
        "reference": "brats-ldm-triton",
        "licence": "that of the weights",
        "release": "",
        "tensorImageSize": "3D",
        "modality": {"0": "FLAIR"},
        "labels": {str(label): name for label, name in NAMES.items()},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }
    return (json.dumps(content, indent=1) + "\n").encode()
