"""Gaussian noise as a function of (seed, draw) only.

No state is kept between draws, so a row's noise cannot depend on its batch, its slot or what ran before.
"""

import numpy as np
from numpy.typing import NDArray

LATENT_SHAPE = (1, 64, 64)


def standard_normal(seed: int, draw: int) -> NDArray[np.float32]:
    """Noise [1, 64, 64] ~ N(0, 1): draw 0 starts the trajectory, draw i + 1 belongs to step i.

    Philox4x64 (Salmon et al. 2011) keyed by the seed's 64 bits (two's complement), `draw` in the highest word of its
    counter: 2^192 numbers apart, so draws never overlap.
    """
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)
    counter = np.array([0, 0, 0, draw], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return generator.standard_normal(LATENT_SHAPE, dtype=np.float32)
