"""What a label map is, and what is said of an array that is none. Reads no files."""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .._errors import InvalidRequest

U8: TypeAlias = npt.NDArray[np.uint8]
SIDE = 240  # pixels of 1 mm
NAMES = {0: "background", 1: "edema", 2: "non-enhancing tumor", 3: "enhancing tumour"}
"""The labels, spelled as in the dataset.json of Task01_BrainTumour."""
_MEANING = ", ".join(f"{label} {name}" for label, name in NAMES.items())


def check_maps(maps: Any, what: str = "labels") -> U8:
    """Label maps as uint8 [n, 240, 240], from integers of [240, 240], [n, 240, 240] or [n, 1, 240, 240].

    what: Names the maps in the message of an error.

    Raises:
        InvalidRequest: another shape or type, or a value that is no label; the message says which, and where.
    """
    array = np.asarray(maps)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    planes = array[None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[1:] != (SIDE, SIDE) or not len(planes) or array.dtype.kind not in "biu":
        raise InvalidRequest(
            f"{what} must be integers of shape ({SIDE}, {SIDE}) or (n, {SIDE}, {SIDE}), not {array.dtype} {array.shape}"
        )
    if planes.min() < 0 or planes.max() > max(NAMES):
        place = np.argwhere((array < 0) | (array > max(NAMES)))[0].tolist()
        raise InvalidRequest(f"{what}{place} is {array[tuple(place)]}, which is no label: use {_MEANING}")
    return np.ascontiguousarray(planes, dtype=np.uint8)


def digest(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256 of the bytes of arrays, in C order: of one map, what a record calls `labels_sha256`."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
