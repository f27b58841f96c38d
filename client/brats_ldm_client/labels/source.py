"""Which map an image of a run has: files in turn, or a library from which the image's seed draws."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .._errors import InvalidRequest
from .files import read_labels
from .library import LabelLibrary, read_library
from .maps import U8, check_maps, digest
from .sampler import LabelSampler

I64: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = "npt.NDArray[Any] | str | os.PathLike[str] | Callable[[int], npt.NDArray[Any]]"
"""What a client's methods take: maps, a path of such, or a function that gives the map of a seed."""


class Rows:
    """The maps for the images of requests, from what a client's methods take.

    Raises:
        InvalidRequest: those are no label maps.
        OSError: a file cannot be read.
    """

    count: int | None = None
    """How many maps there are; None where a function makes them."""
    exact = False
    """Whether there must be one for each image."""

    def __init__(self, labels: Labels) -> None:
        self._of: Callable[[I64, int], U8]
        if callable(labels):
            self._of = partial(_by_seed, labels)
            return
        if isinstance(labels, (str, os.PathLike)):
            maps = read_labels(labels)
        else:
            maps, self.exact = check_maps(labels), np.ndim(labels) > 2
        self._of, self.count = partial(_in_turn, maps), len(maps)

    def of(self, seeds: I64, first: int = 0) -> U8:
        """The maps [n, 240, 240] of images with these seeds, which are number `first` and so on of their run."""
        return self._of(seeds, first)


def _in_turn(maps: U8, seeds: I64, first: int) -> U8:
    rows: U8 = maps[(first + np.arange(len(seeds))) % len(maps)]
    return rows


def _by_seed(function: Callable[[int], npt.NDArray[Any]], seeds: I64, first: int) -> U8:
    maps = [check_maps(function(seed), f"the labels of seed {seed}") for seed in seeds.tolist()]
    if any(len(each) != 1 for each in maps):
        raise InvalidRequest("a function that gives labels must return one map, of shape (240, 240), for a seed")
    return np.concatenate(maps)


@dataclass(frozen=True)
class LabelSource:
    """The maps of a run of any length. It holds the path alone until it is asked, so other processes can get it.

    Raises:
        InvalidRequest, OSError: when it is asked first, as `read_labels` and `read_library`.
    """

    path: Path
    """Of maps, or of a library."""
    drawn: bool = False
    """True: the map of an image is drawn from the library by its seed. False: the maps are used in turn."""

    @cached_property
    def identity(self) -> str:
        """What a plan names: how the maps are used, and the SHA-256 of their bytes."""
        return f"drawn sha256:{self._library.sha256}" if self.drawn else f"in turn sha256:{digest(self.maps)}"

    @cached_property
    def maps(self) -> U8:
        """[n, 240, 240]: the maps that are used in turn, or those of the library."""
        return self._library.labels if self.drawn else read_labels(self.path)

    def map(self, number: int, seed: int) -> U8:
        """The map [240, 240] of an image, by its number in the run and its seed."""
        return self._sampler.draw(seed) if self.drawn else self.maps[number % len(self.maps)]

    @cached_property
    def _library(self) -> LabelLibrary:
        return read_library(self.path)

    @cached_property
    def _sampler(self) -> LabelSampler:
        return LabelSampler(self._library)

    def __reduce__(self) -> tuple[type[LabelSource], tuple[Path, bool]]:
        return LabelSource, (self.path, self.drawn)
