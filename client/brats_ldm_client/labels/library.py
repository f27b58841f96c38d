"""Libraries of label maps: what `brats-ldm labels` makes of training data, and the sampler draws from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .._errors import InvalidRequest
from ..files import whole_file
from .files import axial, label_slices, open_nifti, read_archive, voxels
from .maps import SIDE, U8, check_maps, digest

Mask = npt.NDArray[np.bool_]
Value = TypeVar("Value", bound=np.generic)
TASK = "Task01_BrainTumour"
SECTIONS = ("training", "validation", "all")
_DEPTH = 100  # slices in the middle of a volume: those that training takes


@dataclass(frozen=True, eq=False)
class LabelLibrary:
    """Label maps, each with the brain of its slice.

    Raises:
        InvalidRequest: the arrays are no maps and masks of one number, or a brain is empty.
    """

    labels: U8
    """[n, 240, 240]"""
    brain: Mask
    """[n, 240, 240]: where the brain is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", check_maps(self.labels))
        brain = np.asarray(self.brain)
        if brain.shape != self.labels.shape or brain.dtype.kind not in "bu":
            raise InvalidRequest(
                f"brain must be a mask of the shape of the labels, {self.labels.shape}, not {brain.dtype} {brain.shape}"
            )
        object.__setattr__(self, "brain", brain != 0)
        if not self.brain.any(axis=(1, 2)).all():
            raise InvalidRequest("a brain is empty: each map needs the mask of its slice")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Of the bytes of both arrays, as hexadecimal digits: identifies the library."""
        return digest(self.labels, self.brain.astype(np.uint8))


def read_library(path: str | Path) -> LabelLibrary:
    """A library from its npz file: `labels` and `brain`, both uint8 [n, 240, 240].

    Raises:
        InvalidRequest: the file holds no library; the message names it.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.is_dir() or not path.name.endswith(".npz"):
        raise InvalidRequest(f"{path} is no library: make one with `brats-ldm labels --data DIR --out library.npz`")
    arrays = read_archive(path, ["labels", "brain"])
    try:
        return LabelLibrary(arrays["labels"], arrays["brain"])
    except InvalidRequest as error:
        raise InvalidRequest(f"{path} holds no library: {error}") from None


def make_library(
    data: str | Path,
    out: str | Path,
    count: int = 1000,
    *,
    section: str = "training",
    seed: int = 0,
    on_volume: Callable[[int, int], object] | None = None,
) -> LabelLibrary:
    """Make a library of slices that show a lesion, from a folder like Task01_BrainTumour, and write it as npz.

    Slices are drawn at random from the 100 in the middle of each volume. The brain is where FLAIR is not 0, with its
    holes filled. The same data and arguments give the same library.

    Args:
        data: The folder that holds Task01_BrainTumour, or that folder.
        out: The npz file.
        count: Slices at most; each takes 115 kB of memory.
        section: "training", "validation" (the fifth of the volumes that training holds out, as MONAI's
            DecathlonDataset does), or "all".
        seed: Draws the same slices each time.
        on_volume: Called as `on_volume(done, total)` after each file that was read.

    Raises:
        InvalidRequest: the folder lists no such volumes, a volume has another shape or other values, or no slice shows
            a lesion.
        OSError: a file cannot be read or written.
    """
    if count < 1 or section not in SECTIONS:
        raise InvalidRequest(f"count is {count} and section {section!r}: give 1 or more, and {', '.join(SECTIONS)}")
    volumes, channel = _listed(Path(data), section)
    report = on_volume or (lambda done, total: None)
    places: list[tuple[int, int]] = []  # volume, slice
    for number, (_, labels) in enumerate(volumes):
        lesions = central(label_slices(labels), labels).any(axis=(1, 2))
        places += [(number, int(height)) for height in np.flatnonzero(lesions)]
        report(number + 1, 2 * len(volumes))
    if not places:
        raise InvalidRequest(f"no slice of {len(volumes)} volumes in {data} shows a lesion: give other data")
    order = np.argsort(np.random.Philox(key=seed % 2**64).random_raw(len(places)))  # raw bits: the same in every NumPy
    chosen = sorted(places[place] for place in order[:count])
    parts = []
    for number, (image, labels) in enumerate(volumes):
        if heights := [height for volume, height in chosen if volume == number]:
            maps = check_maps(central(label_slices(labels), labels)[heights], f"{labels}: labels")
            parts.append((maps, _brains(central(_flair(image, channel), image)[heights], image)))
        report(len(volumes) + number + 1, 2 * len(volumes))
    library = LabelLibrary(np.concatenate([maps for maps, _ in parts]), np.concatenate([brain for _, brain in parts]))
    _write(Path(out), library, [volumes[volume][1].name for volume, _ in chosen])
    return library


def _write(path: Path, library: LabelLibrary, volumes: list[str]) -> None:
    """The same library gives the same bytes: the archive has no times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, labels=library.labels, brain=library.brain.astype(np.uint8), volumes=np.array(volumes)
        )


def _listed(data: Path, section: str) -> tuple[list[tuple[Path, Path]], int]:
    """Image and labels of each volume of a section, and the channel that is FLAIR."""
    folder = data if (data / "dataset.json").is_file() else data / TASK
    path = folder / "dataset.json"
    if not path.is_file():
        raise InvalidRequest(f"{path} does not exist: --data is the folder that holds {TASK}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        pairs = [(folder / entry["image"], folder / entry["label"]) for entry in content["training"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            f"{path} has no list `training` of images and labels ({error!r}): give a folder like {TASK}"
        ) from None
    chosen = [pairs[number] for number in section_of(len(pairs), section)]
    if not chosen:
        raise InvalidRequest(f"{path} lists no volume for the section {section}: choose another")
    return chosen, _flair_channel(content.get("modality"))


def section_of(count: int, section: str) -> list[int]:
    """The numbers, out of `count`, of the volumes in a section: a fifth is held out by MONAI's shuffle with seed 0."""
    if section == "all":
        return [*range(count)]
    order = np.arange(count)
    np.random.RandomState(0).shuffle(order)
    held_out = int(0.2 * count)
    return [int(number) for number in (order[:held_out] if section == "validation" else order[held_out:])]


def _flair_channel(names: object) -> int:
    """By its name in dataset.json; the first where that does not say."""
    named = dict(enumerate(names)) if isinstance(names, list) else names
    known: Mapping[Any, Any] = named if isinstance(named, Mapping) else {}
    found = [key for key, name in known.items() if "flair" in str(name).casefold()]
    return int(found[0]) if len(found) == 1 and str(found[0]).isdecimal() else 0


def _flair(path: Path, channel: int) -> npt.NDArray[np.float32]:
    image = open_nifti(path)
    if len(image.shape) == 4:
        if channel >= image.shape[3]:
            raise InvalidRequest(f"{path} has {image.shape[3]} channels, and FLAIR should be number {channel}")
        image = image.slicer[..., channel]
    return voxels(axial(image, path), path)


def central(slices: npt.NDArray[Value], path: Path) -> npt.NDArray[Value]:
    """The middle slices, each cut to its middle 240 x 240 pixels, as training does it."""
    cut = tuple(_middle(size, most) for size, most in zip(slices.shape, (_DEPTH, SIDE, SIDE), strict=True))
    central = slices[cut]
    if central.shape[1:] != (SIDE, SIDE):
        raise InvalidRequest(f"{path} has slices of {slices.shape[1:]} pixels: {SIDE} x {SIDE} or more are needed")
    return central


def _middle(size: int, most: int) -> slice:
    first = max(0, size // 2 - most // 2)
    return slice(first, min(size, first + most))


def _brains(slices: npt.NDArray[np.float32], path: Path) -> Mask:
    brains = np.stack([filled(flair > 0) for flair in slices])
    if not brains.any(axis=(1, 2)).all():
        raise InvalidRequest(f"{path} is 0 where its labels have a lesion: image and labels do not fit")
    return brains


def filled(mask: Mask) -> Mask:
    """A mask [x, y] with its holes: all that cannot be reached from the border through pixels outside it."""
    outside = np.zeros(tuple(size + 2 for size in mask.shape), bool)
    free = ~np.pad(mask, 1)
    outside[0], outside[-1], outside[:, 0], outside[:, -1] = True, True, True, True
    for grown in _grown(outside, free):
        outside = grown
    return ~outside[1:-1, 1:-1]


def _grown(mask: Mask, free: Mask) -> Iterator[Mask]:
    """The mask, larger by one pixel each time, as long as there is a free one beside it."""
    while True:
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        wider &= free
        if (wider == mask).all():
            return
        yield wider
        mask = wider
