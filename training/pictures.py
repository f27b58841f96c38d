"""Arrays to pictures for people: axial slices as a radiologist sees them, side by side."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.files import whole_file

# What errors are multiplied by in pictures: they are a few percent of the range, and black on black shows nothing.
ERROR_GAIN = 5


def to_display(image: np.ndarray) -> np.ndarray:
    """A slice [x to the Right, y to Anterior] in [0, 1] as uint8 rows: anterior up, patient right on the left."""
    return (255 * np.clip(np.rot90(image)[:, ::-1], 0, 1)).round().astype(np.uint8)


def grid(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of slices, each [n, H, W] in [0, 1], as one picture uint8 [rows * W, n * H]."""
    return np.concatenate([np.concatenate([to_display(image) for image in row], axis=1) for row in rows], axis=0)


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W] as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
