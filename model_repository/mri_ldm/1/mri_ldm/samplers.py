"""Samplers as one recurrence over a table of coefficients; NumPy only, no network, no server.

For a row at timestep t with noisy latent x, predicted noise eps, previous estimate h, the one before it g, and fresh
noise z:

    x0 = (x - sigma * eps) / alpha          estimate of the clean latent
    x' = a * x + b * eps + c * h + e * g + d * z
    h' = x0
    g' = h

with alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t). A sampler is a table with the rows (t, a, b, c, d, e,
alpha, sigma). After the last step alpha_bar is 1: the result is the last x0 estimate, without noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .timestep_grids import LEADING, AlignedTimesteps, grid_timesteps, half_log_snr, leading

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "dpmpp_3m", "unipc")
Array = NDArray[np.float32]
Float64 = NDArray[np.float64]
NOISE, EARLIER = 3, 4
"""The columns d and e of a table."""
IDENTITY = np.array([1, 0, 0, 0, 0, 0, 0, 1], np.float32)
"""A row of `SamplerTable.linear` that leaves the latent and both estimates as they are."""
FEW_STEPS = 15
"""With fewer steps than these, the last step but one of dpmpp_3m is second order too, as in diffusers."""


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


@dataclass(frozen=True)
class SamplerTable:
    """The rows of a sampler.

    timesteps: int32 [steps]; coefficients: float32 [steps, 7], columns a, b, c, d, e, alpha, sigma.
    linear: float32 [steps, 8], columns a, b, c, d, e, p, q, r of the same recurrence where all results are linear
    forms: x' as above, h' = p * x + q * eps + r * h and g' = (1 - r) * h + r * g. `IDENTITY` is such a row too.
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
        return bool(self.coefficients[:, NOISE].any())

    @cached_property
    def uses_earlier(self) -> bool:
        """Whether any step uses the estimate before the last one."""
        return bool(self.coefficients[:, EARLIER].any())


@lru_cache(maxsize=256)
def left_out(schedule: NoiseSchedule, steps: int) -> str | None:
    """The warning about a leading grid that leaves out the noisiest timesteps; None if it leaves out none."""
    trained = schedule.num_train_timesteps
    unused = trained % steps
    if not unused:
        return None
    first = int(leading(trained, steps)[0])
    fewer = next(count for count in range(steps, 0, -1) if trained % count == 0)
    more = next(count for count in range(steps, trained + 1) if trained % count == 0)
    noisiest = "timestep" if unused == 1 else f"{unused} timesteps"
    return (
        f"{steps} steps do not divide {trained}: they start at timestep {first} and leave out the noisiest {noisiest}; "
        f"{fewer} or {more} steps leave out none"
    )


@lru_cache(maxsize=256)
def sampler_table(
    schedule: NoiseSchedule,
    sampler: str,
    steps: int,
    eta: float,
    grid: str = LEADING,
    aligned: AlignedTimesteps = (),
) -> SamplerTable:
    """The table of a sampler on a grid; aligned: the optimised timesteps of the weights, if there are any.

    ddim: deterministic for eta 0, first order; eta 1 is ancestral sampling on the same grid.
    ddpm: ddim with eta 1; with 1000 steps exactly DDPM with the posterior variance ("fixed small").
    dpmpp_2m: deterministic, second order, multistep; the first and the last step are first order.
    dpmpp_3m: the same with three estimates from the third step on.
    unipc: dpmpp_2m whose latents are corrected once the network has seen them; third order.

    Raises:
        ValueError: an unknown sampler or grid, or steps outside 1..num_train_timesteps.
    """
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps is {steps}; it must lie in 1..{schedule.num_train_timesteps}")
    timesteps = grid_timesteps(grid, steps, schedule.alpha_bars(), aligned)
    alpha_bar = schedule.alpha_bars()[timesteps]
    columns = sampler_columns(sampler, alpha_bar, eta)
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    table = np.stack([*columns, alpha, sigma], axis=1)
    linear = np.stack([*columns, 1 / alpha, -sigma / alpha, np.zeros_like(alpha)], axis=1)
    return SamplerTable(timesteps, table.astype(np.float32), linear.astype(np.float32))


Columns = tuple[Float64, Float64, Float64, Float64, Float64]
"""a, b, c, d, e, each [steps]."""


def sampler_columns(sampler: str, alpha_bar: Float64, eta: float = 0.0) -> Columns:
    """The coefficients that depend on the sampler; alpha_bar: [steps] along any descending grid, as in all of these."""
    if sampler == "dpmpp_2m":
        return _data_prediction(alpha_bar, _dpmpp_2m(alpha_bar))
    if sampler == "dpmpp_3m":
        return _data_prediction(alpha_bar, _dpmpp_3m(alpha_bar))
    if sampler == "unipc":
        return _data_prediction(alpha_bar, _unipc(alpha_bar))
    if sampler in SAMPLERS:
        return _ddim(alpha_bar, 1.0 if sampler == "ddpm" else eta)
    raise ValueError(f"sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")


def _ddim(alpha_bar: Float64, eta: float) -> Columns:
    """Song et al. 2021, eq. 12 and 16, with x0 substituted."""
    previous = np.append(alpha_bar[1:], 1.0)
    d = eta * np.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous))
    a = np.sqrt(previous / alpha_bar)
    b = np.sqrt(1 - previous - d**2) - a * np.sqrt(1 - alpha_bar)
    return a, b, np.zeros_like(a), d, np.zeros_like(a)


@dataclass(frozen=True)
class _Weights:
    """x' = x * `latent` + m0 * x0 + m1 * h + m2 * g, each [steps]: a deterministic sampler before x0 is substituted."""

    latent: Float64
    m0: Float64
    m1: Float64
    m2: Float64


def _data_prediction(alpha_bar: Float64, weights: _Weights) -> Columns:
    """x0 = (x - sigma * eps) / alpha substituted."""
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    a = weights.latent + weights.m0 / alpha
    return a, -weights.m0 * sigma / alpha, weights.m1, np.zeros_like(alpha), weights.m2


def _dpmpp_2m(alpha_bar: Float64) -> _Weights:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2.

    k = alpha' (1 - exp(-h)) weighs the data prediction (1 + w) x0 - w h', where h is the step in log(alpha / sigma)
    and w = h / (2 h_last). The last step goes to sigma = 0, where h is infinite and the prediction is x0 itself.
    """
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    k = next_alpha - alpha * next_sigma / sigma
    w = np.zeros_like(alpha)
    h = np.diff(half_log_snr(alpha_bar))
    w[1:-1] = h[1:] / (2 * h[:-1])
    return _Weights(next_sigma / sigma, k * (1 + w), -k * w, np.zeros_like(alpha))


def _dpmpp_3m(alpha_bar: Float64) -> _Weights:
    """Lu et al. 2022, app. B, as in their code and in diffusers: divided differences of three estimates.

    From the third step on. The published formula takes half of the second derivative where a Taylor expansion has all
    of it, so that it converges with order two, at a smaller error than dpmpp_2m.
    """
    weights, steps = _dpmpp_2m(alpha_bar), len(alpha_bar)
    third = slice(2, steps - 1 - (steps < FEW_STEPS))
    h = np.diff(half_log_snr(alpha_bar))
    alpha = np.sqrt(alpha_bar[1:])
    for i in range(steps)[third]:
        step, last, earlier = h[i], h[i - 1], h[i - 2]
        constant = -alpha[i] * np.expm1(-step)
        first = alpha[i] * (np.expm1(-step) / step + 1)
        second = -alpha[i] * ((np.expm1(-step) + step) / step**2 - 0.5)
        # D1 and D2 of the paper, times step and step^2, are sums of the slopes (x0 - h) / last and (h - g) / earlier.
        newer, older = step / last, step / earlier
        bend = (first * last + second * step) / (last + earlier)
        weights.m0[i] = constant + (first + bend) * newer
        weights.m1[i] = -(first + bend) * newer - bend * older
        weights.m2[i] = bend * older
    return weights


def _unipc(alpha_bar: Float64) -> _Weights:
    """Zhao et al. 2023, UniPC-2 with B(h) = exp(h) - 1 ("bh2"): its predictor is dpmpp_2m.

    The corrector replaces the latent at which the network was evaluated by one that fits this evaluation too. Both
    extend the same earlier latent, so the corrected one is x plus a sum of estimates, and the prediction goes on from
    it. The last step is the estimate itself.
    """
    weights = _dpmpp_2m(alpha_bar)
    last = np.diff(half_log_snr(alpha_bar))[:-1]  # the step to each timestep but the first and the last one, in lambda
    scale = np.expm1(-last)  # B(h), and h phi_1(h), of the paper
    newest, change = np.full_like(last, 0.5), np.zeros_like(last)
    ratio = -last[:-1] / last[1:]
    phi2 = -scale[1:] / last[1:] - 1
    phi3 = -phi2 / last[1:] - 0.5
    # The two equations of the paper: earlier + newest = phi2 / B, ratio * earlier + newest = 2 phi3 / B.
    earlier = (phi2 - 2 * phi3) / scale[1:] / (1 - ratio)
    newest[1:] = phi2 / scale[1:] - earlier
    change[1:] = (0.5 - earlier) / ratio  # of (g - h), which the predictor weighs with 0.5 / ratio
    inner = slice(1, -1)
    correction = weights.latent[inner] * np.sqrt(alpha_bar[inner]) * scale
    weights.m0[inner] -= correction * newest
    weights.m1[inner] += correction * (newest - change)
    weights.m2[inner] += correction * change
    return weights


def advance(coefficients: Array, x: Array, eps: Array, h: Array, g: Array, z: Array) -> tuple[Array, Array, Array]:
    """One step of the recurrence for n rows, each with its own coefficients.

    coefficients: [n, 7]; x, eps, h, g, z: [n, 1, 64, 64]. Returns x', h' and g' of the same shape. Every operation is
    elementwise float32, so a row's bits do not depend on the other rows.
    """
    state = np.stack([x, h, g])
    advance_in_place(coefficients, state, eps.copy(), dict(enumerate(z)), np.empty((2, *x.shape), np.float32))
    x, h, g = state
    return x, h, g


def advance_in_place(coefficients: Array, state: Array, eps: Array, noise: Mapping[int, Array], spare: Array) -> None:
    """As `advance`; state [3, n, 1, 64, 64] is x, h and g and becomes x', h' and g', and `eps` is used up.

    Where no row uses g, a state of x and h [2, n, 1, 64, 64] is enough. noise: z of the rows that have any, by their
    place. spare: memory [2, m, 1, 64, 64] to compute m rows at a time in; new memory for every result costs several
    times the arithmetic where a process gets it from the system each time.
    """
    for first in range(0, len(eps), spare.shape[1]):
        part = slice(first, first + spare.shape[1])
        _advance(coefficients[part], state[:, part], eps[part], spare)
    for place, z in noise.items():
        state[0, place] += coefficients[place, NOISE] * z


def _advance(coefficients: Array, state: Array, eps: Array, spare: Array) -> None:
    """Without the noise, for no more rows than `spare` has."""
    a, b, c, _, e, alpha, sigma = (column.reshape(-1, 1, 1, 1) for column in coefficients.T)
    x, h = state[:2]
    new, term = spare[:, : len(x)]
    np.multiply(a, x, out=new)
    new += np.multiply(b, eps, out=term)
    new += np.multiply(c, h, out=term)
    if len(state) > 2:
        for place in np.flatnonzero(e):  # only these: adding 0 g could change the sign of a zero
            new[place] += np.multiply(e[place], state[2, place], out=term[place])
        state[2] = h
    np.divide(np.subtract(x, np.multiply(sigma, eps, out=eps), out=h), alpha, out=h)
    x[...] = new
