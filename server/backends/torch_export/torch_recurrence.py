"""A step of a sampler's recurrence, in NumPy and PyTorch. Each row has its coefficients and its seed.

Knows nothing of Triton, devices or networks, and of samplers only that a step is linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch_noise import LATENT_SHAPE, standard_normal
from torch_program import Array

IDENTITY = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""The coefficients a to g of a step that leaves latent and estimate as they are."""
COLUMNS = len(IDENTITY) + 1
NOISE = 3  # the column d


@dataclass(frozen=True)
class Rows:
    """B rows with K steps to do.

    start: float32 [B, 2, 1, 64, 64], latents and estimates; timesteps: int32 [B, K]; coefficients: float32 [B, K, 7];
    keys: int64 [B, K, 2], the seed and the draw of each step's noise.
    """

    start: Array
    timesteps: Array
    coefficients: Array
    keys: Array

    def __len__(self) -> int:
        return len(self.start)

    @property
    def steps(self) -> int:
        """K."""
        return int(self.timesteps.shape[1])

    @property
    def noisy(self) -> Array:
        """Where there is noise to draw: bool [B, K]."""
        noisy: Array = self.coefficients[..., NOISE] != 0
        return noisy

    def part(self, rows: slice, steps: slice) -> Rows:
        """Some of the rows and of their steps."""
        return Rows(self.start[rows], *(array[rows, steps] for array in (self.timesteps, self.coefficients, self.keys)))


def columns_of(coefficients: Array) -> Array:
    """[B, K, 7] as `advance` takes them, step by step: [K, COLUMNS, B, 1, 1, 1]. The last says which are IDENTITY."""
    keeps = (coefficients == np.array(IDENTITY, np.float32)).all(axis=2, keepdims=True)
    columns = np.concatenate([coefficients, keeps], axis=2, dtype=np.float32).transpose(1, 2, 0)
    return np.ascontiguousarray(columns).reshape(*columns.shape, *[1] * len(LATENT_SHAPE))


def advance(state: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A step of B rows: x' = a x + b eps + c h + d z and h' = e x + f eps + g h, where IDENTITY keeps both bitwise.

    state: float32 [2, B, ...], x and h; eps, noise: [B, ...]; columns: [COLUMNS, B, 1, ...]. Returns x' and h' as
    state. Elementwise, and rounded after each operation as NumPy does it: a row's bits depend on that row alone.
    """
    x, h = state
    after = columns[0::4] * x + columns[1::4] * eps + columns[2::4] * h  # a and e, b and f, c and g
    after[0] += columns[NOISE] * noise
    # 1 x + 0 eps is x, but for a zero's sign.
    return torch.where(columns[-1] != 0, state, after)


def draw_rows(into: Array, keys: Array, wanted: Array) -> None:
    """The noise of a step into float32 [B, ...]; keys: [B, 2], seeds and draws. Rows not `wanted` [B] get zeros."""
    for row, (seed, draw) in enumerate(keys.tolist()):
        into[row] = standard_normal(seed, draw) if wanted[row] else 0
