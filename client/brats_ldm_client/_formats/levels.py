"""Grey levels of 8 and 16 bits: level = round(value * largest), with values clipped to [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..pictures import Pixels, as_rows, grey_levels, to_display

LARGEST = {8: 255, 16: 65535}


def scaling(bits: int) -> str:
    """How a reader gets values from levels; stands in each file."""
    return f"value = level / {LARGEST[bits]}, clipped to [0, 1]"


def stored_levels(image: npt.NDArray[np.float32], bits: int) -> npt.NDArray[Any]:
    return grey_levels(image, LARGEST[bits]).astype(np.uint8 if bits == 8 else np.uint16)


def values(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The values of levels, float32; values stay as they are."""
    if pixels.dtype.kind != "u":
        return pixels.astype(np.float32, copy=False)
    return pixels / np.float32(LARGEST[8 * pixels.dtype.itemsize])


def picture(pixels: npt.NDArray[Any]) -> Pixels:
    """Values or levels as an 8-bit picture."""
    if pixels.dtype == np.uint8:
        return as_rows(pixels)
    return to_display(values(pixels))
