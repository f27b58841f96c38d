"""Label maps as the UNet sees them, for weights that were trained with them; `training.conditioning` says the same.

A condition is [4, 64, 64]: the share of each label's pixels in the 4 x 4 pixels of a latent, then 1 everywhere. Zeros
are the condition of a row without a map.
"""

import numpy as np
from numpy.typing import NDArray

from .noise import LATENT_SHAPE

LABELS = {0: "background", 1: "oedema", 2: "non-enhancing", 3: "enhancing"}
"""What the values of a map mean, as in Task01_BrainTumour."""
CONDITION_SHAPE = (len(LABELS), *LATENT_SHAPE[1:])


def condition_of(labels: NDArray[np.uint8], margin: int) -> NDArray[np.float32]:
    """The condition of a map, uint8 [1, 240, 240]; `margin` pixels are added on each side, as training pads images."""
    padded = np.pad(labels[0], margin)
    rows, columns = CONDITION_SHAPE[1:]
    places = padded.reshape(rows, len(padded) // rows, columns, -1)
    condition = np.ones(CONDITION_SHAPE, np.float32)
    for channel, label in enumerate(sorted(LABELS)[1:]):
        condition[channel] = (places == label).mean(axis=(1, 3), dtype=np.float32)
    return condition
