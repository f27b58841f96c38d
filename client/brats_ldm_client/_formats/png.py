"""PNG of 8 or 16 bits, anterior up, with the record in text chunks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import pictures
from .levels import scaling, stored_levels
from .record import core


def png(image: npt.NDArray[np.float32], record: Mapping[str, Any], bits: int) -> bytes:
    rows = pictures.as_rows(stored_levels(image, bits))
    return pictures.png(rows, {**core(record), "Scaling": scaling(bits)})


def png_labels(labels: npt.NDArray[np.uint8], record: Mapping[str, Any]) -> bytes:
    """A label map whose levels are the labels 0 to 3, so it looks black."""
    return pictures.png(pictures.as_rows(labels), core(record))


def read_png(file: Path | IO[bytes]) -> npt.NDArray[Any]:
    with Image.open(file) as picture:
        # Older Pillows read 16 bits as 32.
        rows = np.asarray(picture).astype(np.uint8 if picture.mode == "L" else np.uint16)
    return pictures.from_rows(rows)
