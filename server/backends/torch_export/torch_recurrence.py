"""A step of a sampler's recurrence, in NumPy and PyTorch. Each row has its coefficients and its seed.

Knows nothing of Triton, devices or networks, and of samplers only that a step is linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch_noise import LATENT_SHAPE, standard_normal
from torch_program import Array

IDENTITY = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""The coefficients a, b, c, d, e, p, q, r of a step that leaves the latent and both estimates as they are."""
NOISE = 3  # the coefficient d
STATE = 3  # the latent, the estimate, the estimate before it
COLUMNS = (STATE + 1) * STATE + 2
"""Of a step in `advance`: weights of x, eps, h and g in each of x', h' and g'; that of the noise; whether it rests."""


@dataclass(frozen=True)
class Rows:
    """B rows with K steps to do.

    start: float32 [B, 3, 1, 64, 64], latents, estimates and the ones before; timesteps: int32 [B, K]; coefficients:
    float32 [B, K, 8]; keys: int64 [B, K, 2], the seed and the draw of each step's noise; condition: float32
    [B, 4, 64, 64], for a network that takes labels.
    """

    start: Array
    timesteps: Array
    coefficients: Array
    keys: Array
    condition: Array | None = None

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
        timesteps, coefficients, keys = (a[rows, steps] for a in (self.timesteps, self.coefficients, self.keys))
        condition = None if self.condition is None else self.condition[rows]
        return Rows(self.start[rows], timesteps, coefficients, keys, condition)


def columns_of(coefficients: Array) -> Array:
    """[B, K, 8] as `advance` takes them, step by step: [K, COLUMNS, B, 1, 1, 1]."""
    a, b, c, d, e, p, q, r = coefficients.transpose(2, 1, 0)
    rests = (coefficients == np.array(IDENTITY, np.float32)).all(axis=2).T
    none = np.zeros_like(a)
    weights = [a, p, none, b, q, none, c, r, 1 - r, e, none, r]  # of x, of eps, of h, of g
    columns = np.stack([*weights, d, rests], axis=1, dtype=np.float32)
    return np.ascontiguousarray(columns).reshape(*columns.shape, *[1] * len(LATENT_SHAPE))


def advance(state: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A step of B rows: x' = a x + b eps + c h + e g + d z, h' = p x + q eps + r h and g' = (1 - r) h + r g.

    state: float32 [3, B, ...], x, h and g; eps, noise: [B, ...]; columns: [COLUMNS, B, 1, ...]. Returns x', h' and g'
    as state; IDENTITY keeps all three bitwise. Elementwise, and rounded after each operation as NumPy does it: a row's
    bits depend on that row alone.
    """
    x, h, g = state
    after = columns[0:3] * x + columns[3:6] * eps + columns[6:9] * h + columns[9:12] * g
    after[0] += columns[12] * noise
    # 1 x + 0 eps is x, but for a zero's sign.
    return torch.where(columns[13] != 0, state, after)


def draw_rows(into: Array, keys: Array, wanted: Array) -> None:
    """The noise of a step into float32 [B, ...]; keys: [B, 2], seeds and draws. Rows not `wanted` [B] get zeros."""
    for row, (seed, draw) in enumerate(keys.tolist()):
        into[row] = standard_normal(seed, draw) if wanted[row] else 0
