"""Arrays to pictures for people: axial slices as a radiologist sees them, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brats_ldm_client.pictures import Pixels, to_display
from training.files import whole_file

# The factor of errors in pictures. They are a few percent of the range, so without it the picture would be black.
ERROR_GAIN = 5
FOOT_GREY = 230  # of the lines at the foot of a sheet


def grid(rows: Sequence[Sequence[NDArray[np.floating[Any]]]]) -> Pixels:
    """Rows of slices, each [n, H, W] in [0, 1], as one picture [rows * W, n * H]."""
    return np.concatenate([np.concatenate([to_display(image) for image in row], axis=1) for row in rows], axis=0)


def save_picture(pixels: Pixels, path: Path) -> None:
    """Write grey levels [H, W] as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
