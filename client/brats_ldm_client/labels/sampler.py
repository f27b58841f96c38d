"""Draws label maps from those of a library: another place, turn, size and side, and sometimes a second lesion.

A map depends on the library and its seed alone. Knows neither files nor the server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._errors import InvalidRequest
from .library import LabelLibrary
from .maps import SIDE, U8

Mask = npt.NDArray[np.bool_]

_KEY = int.from_bytes(b"labels", "big")  # the server's noise has 0 here, so the two share no number
_SHIFT = 16.0  # pixels at most, to each side
_TURN = math.pi / 6  # at most, either way
_SCALE = math.log(1.3)  # of the largest enlargement; lesions shrink as often as they grow
_MIX = 0.25  # share of the maps that get the lesion of a second one
_ALIKE = 0.85  # overlap of two brains, as intersection over union, from which their slices are at about one height
_EDGE = 2  # pixels of the brain's edge that stay free
_CUT = 0.05  # share of a lesion that may lie outside
_TRIES = 16


class LabelSampler:
    """Draws label maps that look like those of a library, and lie inside the brain.

    Each map is one of the library, its lesion mirrored with probability 1/2, turned by up to 30 degrees, scaled by a
    factor from 1/1.3 to 1.3 and shifted by up to 16 pixels each way. One map in four gets a second lesion, of a slice
    whose brain has about the same outline; where both lie, the higher label stays.

    The numbers come from Philox (Salmon et al. 2011), keyed by the seed. NumPy promises the same bits in all releases.

    Args:
        library: Of `read_library` or `make_library`.

    Raises:
        InvalidRequest: a map of the library has no lesion.
    """

    def __init__(self, library: LabelLibrary) -> None:
        self._library = library
        lesions = library.labels.any(axis=(1, 2))
        if not lesions.all():
            raise InvalidRequest(
                f"map {np.argmin(lesions)} of the library has no lesion: make one with `brats-ldm labels`"
            )
        columns = library.brain.sum(axis=2)
        self._middles = (columns * np.arange(SIDE)).sum(axis=1) / columns.sum(axis=1)

    def draw(self, seed: int) -> U8:
        """The map uint8 [240, 240] of a seed."""
        numbers, library = _Numbers(seed), self._library
        first = numbers.below(len(library.labels))
        inside = _eroded(library.brain[first], _EDGE)
        second = self._alike(first, numbers) if numbers.unit() < _MIX else None
        for _ in range(_TRIES):
            drawn = self._moved(first, numbers)
            if second is not None:
                drawn = np.maximum(drawn, self._moved(second, numbers))
            lesion, kept = np.count_nonzero(drawn), np.where(inside, drawn, 0)
            if lesion and np.count_nonzero(kept) >= (1 - _CUT) * lesion:
                return kept.astype(np.uint8)
        return np.where(library.brain[first], library.labels[first], 0).astype(np.uint8)

    def _alike(self, first: int, numbers: _Numbers) -> int | None:
        """Another map of a slice at about the same height, if a few looks find one."""
        brain = self._library.brain
        for _ in range(_TRIES):
            other = numbers.below(len(brain))
            common = np.count_nonzero(brain[first] & brain[other])
            if other != first and common >= _ALIKE * np.count_nonzero(brain[first] | brain[other]):
                return other
        return None

    def _moved(self, index: int, numbers: _Numbers) -> U8:
        """A map of the library whose lesion is somewhere else."""
        move = Move(
            mirror=numbers.unit() < 0.5,
            angle=numbers.between(-_TURN, _TURN),
            scale=math.exp(numbers.between(-_SCALE, _SCALE)),
            shift=(numbers.between(-_SHIFT, _SHIFT), numbers.between(-_SHIFT, _SHIFT)),
        )
        return moved(self._library.labels[index], move, float(self._middles[index]))


@dataclass(frozen=True)
class Move:
    """What happens to a lesion, in this order. It is turned and scaled about its own centre."""

    mirror: bool = False
    """Left becomes right, about the middle of the brain."""
    angle: float = 0.0
    """From the first axis towards the second."""
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    """Pixels."""


def moved(labels: U8, move: Move, middle: float) -> U8:
    """The map [240, 240] after a move, each pixel with the label of the nearest one that it comes from.

    middle: of the brain, on the first axis.
    """
    columns, rows = np.nonzero(labels)
    x, y = int(columns.sum()) / len(columns), int(rows.sum()) / len(rows)
    reach = move.scale * math.sqrt(((columns - x) ** 2 + (rows - y) ** 2).max()) + 1
    to_x, to_y = (2 * middle - x if move.mirror else x) + move.shift[0], y + move.shift[1]
    box = _span(to_x, reach), _span(to_y, reach)  # nothing of the lesion is outside
    right = np.arange(box[0].start, box[0].stop)[:, None] - to_x
    front = np.arange(box[1].start, box[1].stop)[None] - to_y
    # The way back: turn by -angle, then mirror, then from the centre of the lesion.
    cos, sin, side = math.cos(move.angle) / move.scale, math.sin(move.angle) / move.scale, -1 if move.mirror else 1
    column = np.floor(x + side * (cos * right + sin * front) + 0.5).astype(np.int64)
    row = np.floor(y - sin * right + cos * front + 0.5).astype(np.int64)
    known = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
    drawn = np.zeros_like(labels)
    drawn[box] = np.where(known, labels[np.where(known, column, 0), np.where(known, row, 0)], 0)
    return drawn


def _span(middle: float, reach: float) -> slice:
    """The pixels of an axis that are so near, as far as there are any."""
    first, last = math.floor(middle - reach), math.ceil(middle + reach)
    return slice(min(max(0, first), SIDE), min(max(0, last + 1), SIDE))


def _eroded(mask: Mask, pixels: int) -> Mask:
    """Without so many pixels of its edge."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = mask & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask


class _Numbers:
    """Random numbers of a seed, from the raw bits of Philox: unlike those of `Generator`, they never change."""

    def __init__(self, seed: int) -> None:
        key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, _KEY], dtype=np.uint64)
        self._bits = np.random.Philox(key=key, counter=np.zeros(4, np.uint64))

    def unit(self) -> float:
        """From 0 to below 1."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """A whole number from 0 to below `count`."""
        return int(self.unit() * count)
