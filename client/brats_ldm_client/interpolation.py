"""The way from one image to another: start noise between that of two seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest
from ._types import F32


def slerp(start: F32, end: F32, fractions: Sequence[float] | npt.NDArray[np.floating[Any]]) -> F32:
    """Points on the arc between two noises, by spherical linear interpolation (Shoemake 1985).

    Linear interpolation of noise has less variance between its ends than the noise the network knows; an arc keeps it.

    Args:
        start: Noise [...], such as that of a seed from `Client.start_noise`.
        end: Noise of the same shape.
        fractions: Of the way, [k], from 0 to 1. At 0 and 1 the result is `start` and `end` bit for bit.

    Returns:
        Noise [k, ...] for `latents=` of `Client.generate` and `Client.stream`.

    Raises:
        InvalidRequest: the shapes differ, or a fraction lies outside 0 to 1.
    """
    if start.shape != end.shape:
        raise InvalidRequest(f"slerp needs two noises of one shape, not {start.shape} and {end.shape}")
    way = np.asarray(fractions, np.float64)
    if way.ndim != 1 or not way.size or not ((way >= 0) & (way <= 1)).all():
        raise InvalidRequest(f"fractions of the way must be a list of numbers from 0 to 1, not {fractions!r}")
    points = [_between(start, end, float(fraction)) for fraction in way]
    return np.asarray(np.stack(points), np.float32)


def _between(start: F32, end: F32, fraction: float) -> npt.NDArray[Any]:
    if fraction in (0.0, 1.0):
        return end if fraction else start
    one, two = start.astype(np.float64), end.astype(np.float64)
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    cosine = float((one * two).sum()) / norms if norms else 1.0
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    if np.isclose(np.sin(angle), 0.0):  # one noise twice, its mirror image, or zeros: no arc is defined
        return (1.0 - fraction) * one + fraction * two
    return np.asarray((np.sin((1.0 - fraction) * angle) * one + np.sin(fraction * angle) * two) / np.sin(angle))
