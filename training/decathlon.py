"""dataset.json of the Medical Segmentation Decathlon: which volumes there are, and which channel is which modality."""

import functools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.config import Data
from training.file_problems import describe_file, list_problems
from training.files import sha256

TASK = "Task01_BrainTumour"
Section = Literal["training", "validation"]
# In the order of Task01_BrainTumour, with their names in other data sets as `_plain` writes them.
MODALITIES = {
    "FLAIR": ("flair", "t2flair", "t2wflair", "flairt2"),
    "T1w": ("t1w", "t1", "t1n", "t1weighted"),
    "T1gd": ("t1gd", "t1c", "t1ce", "t1wgd", "t1wce", "t1post"),
    "T2w": ("t2w", "t2", "t2weighted"),
}


class DataError(ValueError):
    """Training data that cannot be used; the message names the path."""


@dataclass(frozen=True)
class Volume:
    """One volume of the list."""

    path: Path
    name: str
    """The name of its file without .nii.gz; where two volumes have the same, with number and folder in front."""
    label: Path | None = None
    """Its label map, where dataset.json names one."""


@dataclass(frozen=True)
class Index:
    """The content of dataset.json."""

    path: Path
    content: dict[str, Any]
    volumes: list[Volume]


def read_index(root: Path) -> Index:
    """The dataset.json below `root`.

    Raises:
        DataError: the file is missing or is not JSON, it lists no volumes, or it lists one of them twice.
    """
    path = root / TASK / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: --data is the folder that holds {TASK} "
            "(make phantom data with `python -m training.phantom --out DIR`)"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # as some editors of Windows save it
    except (ValueError, RecursionError) as error:
        raise DataError(describe_file(path, error, "is no JSON")) from None
    entries = content.get("training") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{path} has no list `training` of volumes, as the one of the Medical Segmentation Decathlon has"
        )
    if not all(isinstance(entry, dict) and isinstance(entry.get("image"), str) for entry in entries):
        raise DataError(f"{path}: every entry of `training` must be a table with the path `image` of a volume")
    paths = [root / TASK / entry["image"] for entry in entries]
    _check_once(path, paths)
    given = [entry.get("label") for entry in entries]
    labels = [root / TASK / label if isinstance(label, str) and label else None for label in given]
    return Index(path, content, [Volume(*parts) for parts in zip(paths, volume_names(paths), labels, strict=True)])


def section_of(count: int, section: Section) -> list[int]:
    """The numbers, out of `count`, of the volumes in a section. A fifth is held out, as MONAI's DecathlonDataset does
    with seed 0."""
    import numpy as np

    order = np.arange(count)
    np.random.RandomState(0).shuffle(order)
    held_out = int(0.2 * count)
    return list(order[:held_out] if section == "validation" else order[held_out:])


def _check_once(index: Path, paths: Sequence[Path]) -> None:
    """A volume that is listed twice could be both trained on and held out."""
    seen: dict[str, int] = {}
    twice = []
    for number, path in enumerate(paths):
        first = seen.setdefault(_real(path), number)
        if first != number:
            twice.append(f"{index}: entries {first} and {number} of `training` are both {path}: list it once")
    if twice:
        raise DataError(list_problems("entries", twice))


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # not a path; the reader of the file reports it
        return str(path)


def volume_names(paths: Sequence[Path]) -> list[str]:
    """A unique name for each of `paths`, also on a file system that ignores case; see Volume.name."""
    stems = [path.name.removesuffix(".gz").removesuffix(".nii") for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems) and all(stem[:1] not in ("", ".") for stem in stems):
        return stems
    folders = [path.parent.name for path in paths]
    return [f"{number:04d}_{folder}_{stem}" for number, (folder, stem) in enumerate(zip(folders, stems, strict=True))]


def describe_data(index: Index) -> dict[str, Any]:
    """A record of the data of a run: name, description and number of volumes in dataset.json, and its sha256."""
    record = {key: index.content.get(key) for key in ("name", "description", "numTraining")}
    return {**record, "sha256": sha256(index.path)}


def channel_of(index: Index, config: Data) -> int:
    """The index of the channel with the modality `config.channel`, by its name in dataset.json if that has names.

    Raises:
        DataError: dataset.json has names, but none or several of this modality.
    """
    names = index.content.get("modality")
    if isinstance(names, list):
        names = {str(key): name for key, name in enumerate(names)}
    wanted = dict(enumerate(MODALITIES)).get(config.channel)
    if config.modality == "any" or wanted is None or not isinstance(names, dict) or not names:
        return config.channel
    keys = [key for key, name in names.items() if _plain(name) in MODALITIES[wanted]]
    if str(config.channel) in keys:
        return config.channel
    if len(keys) != 1 or not keys[0].isdecimal():
        listed = ", ".join(f"{key} {name}" for key, name in names.items())
        raise DataError(
            f"{index.path}: data.channel is {config.channel}, {wanted}, and `modality` names {len(keys) or 'no'} "
            f"such channel{'s' * (len(keys) > 1)} ({listed}): correct the names, or set data.modality to any for "
            f"channel {config.channel} whatever it is"
        )
    _print_once(f"{index.path}: {wanted} is channel {keys[0]}, which is used for data.channel {config.channel}")
    return int(keys[0])


def _plain(name: Any) -> str:
    """A modality without punctuation and case: T1-w and t1w are the same."""
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())


@functools.cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)  # the data are opened several times in a run
