"""Samplers as one recurrence over a table of coefficients; NumPy only, no network, no server.

For a row at timestep t with noisy latent x, predicted noise eps, previous estimate h and fresh noise z:

    x0 = (x - sigma * eps) / alpha          estimate of the clean latent
    x' = a * x + b * eps + c * h + d * z
    h' = x0

with alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t). A sampler is a table with the rows (t, a, b, c, d, alpha,
sigma). After the last step alpha_bar is 1: the result is the last x0 estimate, without noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m")
Array = NDArray[np.float32]
IDENTITY = np.array([1, 0, 0, 0, 0, 0, 1], np.float32)
"""A row of `SamplerTable.linear` that leaves latent and estimate as they are."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The schedule of training: betas = linspace(sqrt(beta_start), sqrt(beta_end), T)^2 ("scaled linear")."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float

    def alpha_bars(self) -> NDArray[np.float64]:
        """Cumulative products of 1 - beta, [T] (Ho et al. 2020, section 2)."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps, dtype=np.float64) ** 2
        return np.cumprod(1 - betas)

    def timesteps(self, steps: int) -> NDArray[np.int32]:
        """The "leading" grid of MONAI before 1.6: 980, 960, ..., 0 for 50 steps of 1000. Returns [steps], descending.

        Steps that do not divide T leave its noisiest end unused, as upstream does: `left_out`.
        """
        stride = self.num_train_timesteps // steps
        return (np.arange(steps, dtype=np.int32) * np.int32(stride))[::-1].copy()


@dataclass(frozen=True)
class SamplerTable:
    """The rows of a sampler.

    timesteps: int32 [steps]; coefficients: float32 [steps, 6], columns a, b, c, d, alpha, sigma.
    linear: float32 [steps, 7], columns a, b, c, d, e, f, g of the same recurrence where both results are linear forms:
    x' = a * x + b * eps + c * h + d * z and h' = e * x + f * eps + g * h. `IDENTITY` is such a row too.
    """

    timesteps: NDArray[np.int32]
    coefficients: Array
    linear: Array

    @property
    def steps(self) -> int:
        """Number of times that a row goes through the network."""
        return len(self.timesteps)

    @cached_property
    def stochastic(self) -> bool:
        """Whether any step adds fresh noise."""
        return bool(self.coefficients[:, 3].any())


@lru_cache(maxsize=256)
def left_out(schedule: NoiseSchedule, steps: int) -> str | None:
    """The warning about a grid that leaves out the noisiest timesteps; None if it leaves out none."""
    trained = schedule.num_train_timesteps
    unused = trained % steps
    if not unused:
        return None
    first = int(schedule.timesteps(steps)[0])
    fewer = next(count for count in range(steps, 0, -1) if trained % count == 0)
    more = next(count for count in range(steps, trained + 1) if trained % count == 0)
    noisiest = "timestep" if unused == 1 else f"{unused} timesteps"
    return (
        f"{steps} steps do not divide {trained}: they start at timestep {first} and leave out the noisiest {noisiest}; "
        f"{fewer} or {more} steps leave out none"
    )


@lru_cache(maxsize=256)
def sampler_table(schedule: NoiseSchedule, sampler: str, steps: int, eta: float) -> SamplerTable:
    """The table of a sampler.

    ddim: deterministic for eta 0, first order; eta 1 is ancestral sampling on the same grid.
    ddpm: ddim with eta 1; with 1000 steps exactly DDPM with the posterior variance ("fixed small").
    dpmpp_2m: deterministic, second order, multistep; the first and the last step are first order.

    Raises:
        ValueError: an unknown sampler, or steps outside 1..num_train_timesteps.
    """
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps is {steps}; it must lie in 1..{schedule.num_train_timesteps}")
    timesteps = schedule.timesteps(steps)
    alpha_bar = schedule.alpha_bars()[timesteps]
    if sampler == "dpmpp_2m":
        columns = _dpmpp_2m(alpha_bar)
    elif sampler in SAMPLERS:
        columns = _ddim(alpha_bar, 1.0 if sampler == "ddpm" else eta)
    else:
        raise ValueError(f"sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    table = np.stack([*columns, alpha, sigma], axis=1)
    linear = np.stack([*columns, 1 / alpha, -sigma / alpha, np.zeros_like(alpha)], axis=1)
    return SamplerTable(timesteps, table.astype(np.float32), linear.astype(np.float32))


Columns = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _ddim(alpha_bar: NDArray[np.float64], eta: float) -> Columns:
    """Song et al. 2021, eq. 12 and 16, with x0 substituted. alpha_bar: [steps] along the descending grid."""
    previous = np.append(alpha_bar[1:], 1.0)
    d = eta * np.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous))
    a = np.sqrt(previous / alpha_bar)
    b = np.sqrt(1 - previous - d**2) - a * np.sqrt(1 - alpha_bar)
    return a, b, np.zeros_like(a), d


def _dpmpp_2m(alpha_bar: NDArray[np.float64]) -> Columns:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, with x0 substituted. alpha_bar: [steps] along the descending grid.

    k = alpha' (1 - exp(-h)) weighs the data prediction (1 + w) x0 - w h', where h is the step in log(alpha / sigma)
    and w = h / (2 h_last). The last step goes to sigma = 0, where h is infinite and the prediction is x0 itself.
    """
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    k = next_alpha - alpha * next_sigma / sigma
    w = np.zeros_like(alpha)
    h = np.diff(np.log(alpha / sigma))
    w[1:-1] = h[1:] / (2 * h[:-1])
    a = next_sigma / sigma + k * (1 + w) / alpha
    b = -k * (1 + w) * sigma / alpha
    return a, b, -k * w, np.zeros_like(a)


def advance(coefficients: Array, x: Array, eps: Array, h: Array, z: Array) -> tuple[Array, Array]:
    """One step of the recurrence for n rows, each with its own coefficients.

    coefficients: [n, 6]; x, eps, h, z: [n, 1, 64, 64]. Returns x' and h' of the same shape. Every operation is
    elementwise float32, so a row's bits do not depend on the other rows.
    """
    x, h = x.copy(), h.copy()
    advance_in_place(coefficients, x, eps.copy(), h, dict(enumerate(z)), np.empty((2, *x.shape), np.float32))
    return x, h


def advance_in_place(
    coefficients: Array, x: Array, eps: Array, h: Array, noise: Mapping[int, Array], spare: Array
) -> None:
    """As `advance`; x becomes x', h becomes h', and `eps` is used up.

    noise: z of the rows that have any, by their place. spare: memory [2, m, 1, 64, 64] to compute m rows at a time in;
    new memory for every result costs several times the arithmetic where a process gets it from the system each time.
    """
    for first in range(0, len(x), spare.shape[1]):
        part = slice(first, first + spare.shape[1])
        _advance(coefficients[part], x[part], eps[part], h[part], spare)
    for place, z in noise.items():
        x[place] += coefficients[place, 3] * z


def _advance(coefficients: Array, x: Array, eps: Array, h: Array, spare: Array) -> None:
    """Without the noise, for no more rows than `spare` has."""
    a, b, c, _, alpha, sigma = (column.reshape(-1, 1, 1, 1) for column in coefficients.T)
    new, term = spare[:, : len(x)]
    np.multiply(a, x, out=new)
    new += np.multiply(b, eps, out=term)
    new += np.multiply(c, h, out=term)
    np.divide(np.subtract(x, np.multiply(sigma, eps, out=eps), out=h), alpha, out=h)
    x[...] = new
