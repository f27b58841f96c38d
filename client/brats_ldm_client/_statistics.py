"""Which pixel values images have: counts in fixed bins, which can be added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._types import F32

LOW, HIGH, BINS = -0.25, 1.25, 150
"""Values are trained towards [0, 1]."""


class Statistics:
    """Of the pixels of images that are added one by one.

    low, high: the outer edges of the bins.
    """

    def __init__(self, low: float = LOW, high: float = HIGH) -> None:
        self._low, self._high = low, high
        self._counts = np.zeros(BINS + 2, np.int64)  # the first and the last are of values outside the bins
        self._not_finite = 0
        self._least, self._largest = math.inf, -math.inf

    def add(self, image: F32) -> None:
        finite = image[np.isfinite(image)]
        self._not_finite += image.size - finite.size
        if finite.size:
            with np.errstate(over="ignore"):
                bins = np.floor((finite - self._low) * (BINS / (self._high - self._low)))
            self._counts += np.bincount(np.clip(bins, -1, BINS).astype(np.int64) + 1, minlength=BINS + 2)
            self._least = min(self._least, float(finite.min()))
            self._largest = max(self._largest, float(finite.max()))

    def as_dict(self) -> dict[str, Any]:
        below, *counts, above = self._counts.tolist()
        known = self._least <= self._largest
        return {
            "least": self._least if known else None,
            "largest": self._largest if known else None,
            "not_finite": self._not_finite,
            "histogram": {"from": self._low, "to": self._high, "below": below, "above": above, "counts": counts},
        }


def total(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of all images from those of parts of them, all with the usual bins."""
    whole = Statistics()
    for part in parts:
        histogram = part["histogram"]
        whole._counts += np.array([histogram["below"], *histogram["counts"], histogram["above"]], np.int64)
        whole._not_finite += part["not_finite"]
        if part["least"] is not None:
            whole._least = min(whole._least, part["least"])
            whole._largest = max(whole._largest, part["largest"])
    return whole.as_dict()
