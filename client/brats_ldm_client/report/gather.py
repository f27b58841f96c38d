"""Reads a part of a folder that is enough for its page, and holds no more of it in memory than the page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .._formats.levels import values
from .._statistics import HIGH, LOW, Statistics
from ..pictures import SHEET_LIMIT, Pixels, to_display
from ..viewer import full_window
from .readers import Picture
from .sources import Source

SAMPLE = 512  # images that are read, of a large folder
_SIDE = 512  # pixels of a picture: larger ones would make pages that browsers are slow to open


@dataclass
class Gathered:
    """What the page shows of the images."""

    pictures: dict[int, Picture] = field(default_factory=dict)
    """Those of the contact sheet, by their numbers in the source."""
    window: tuple[float, float] = (0.0, 1.0)
    """The values that are shown black and white."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    measured: int = 0
    """Images in the statistics."""
    read: int = 0
    """Images that were read."""
    said: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """What files say of the images that were read, by number: their records, with `synthetic`."""


def gather(source: Source, on_image: Callable[[], object] | None = None) -> Gathered:
    """Read the images of a source that the page shows or measures.

    on_image: called after each.
    """
    found = Gathered()
    chosen = evenly(source.facts.count, SAMPLE)
    shown = [chosen[place] for place in evenly(len(chosen), SHEET_LIMIT)]
    for index, picture in _read(source, shown, found, on_image):
        found.pictures[index] = picture
    found.window = full_window([picture.pixels for picture in found.pictures.values()])
    known = source.facts.statistics
    if known is not None:
        found.statistics, found.measured = known, source.facts.count
        return found
    statistics = Statistics(*_edges(found.window))
    for picture in found.pictures.values():
        statistics.add(values(picture.pixels))
    for _, picture in _read(source, sorted({*chosen} - {*shown}), found, on_image):
        statistics.add(values(picture.pixels))
    found.statistics, found.measured = statistics.as_dict(), found.read
    return found


def _read(
    source: Source, indices: Sequence[int], found: Gathered, on_image: Callable[[], object] | None
) -> Iterator[tuple[int, Picture]]:
    for index, picture in source.read(indices):
        found.read += 1
        found.said[index] = {**picture.record, **({"synthetic": True} if picture.synthetic else {})}
        if on_image is not None:
            on_image()
        yield index, picture


def evenly(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, evenly spread, from 0 on."""
    number = min(count, most)
    return [place * count // number for place in range(number)]


def _edges(window: tuple[float, float]) -> tuple[float, float]:
    """The edges of the histogram: the usual ones, or as far beyond the window of other values."""
    width = window[1] - window[0]
    return window[0] + LOW * width, window[0] + HIGH * width


def grey(picture: Picture, window: tuple[float, float]) -> Pixels:
    """A picture in a window, of 512 pixels at most in width and height."""
    scaled = (values(picture.pixels).astype(np.float64) - window[0]) / (window[1] - window[0])
    small = Image.fromarray(to_display(scaled))
    small.thumbnail((_SIDE, _SIDE))
    return np.asarray(small)
