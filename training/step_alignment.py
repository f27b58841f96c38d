"""Which timesteps lose the least in few steps: Align Your Steps (Sabour et al. 2024), with an exact search.

Noise levels are sigma / alpha of the schedule, as in Karras et al. 2022. A step from the noise level s to the level r
uses one estimate D(x_s, s) where the exact reverse process would use D(x_t, t) at every t between them. Theorem 3.1 of
the paper bounds what this does to the distribution of the samples:

    KLUB = sum over steps of the integral from r to s of 1 / t^3 E |D(x_t, t) - D(x_s, s)|^2 dt

where x_t and x_s lie on one path x_t = x_0 + W(t^2), with a Brownian motion W. The paper minimises it by gradient
descent. Here it is evaluated for every pair of candidate timesteps, from which the best grid follows exactly, for any
number of steps, by dynamic programming.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float64 = NDArray[np.float64]
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, 1, h, w], timesteps [B]) -> predicted noise [B, 1, h, w]"""


def noise_levels(alpha_bars: Float64) -> Float64:
    """sigma / alpha of alpha_bars, of the same shape."""
    return np.sqrt(1 / alpha_bars - 1)


def candidate_timesteps(alpha_bars: Float64, count: int) -> NDArray[np.int64]:
    """At most `count` timesteps from T - 1 down to 0, even in the logarithm of the noise level.

    Fewer, since at little noise several of them round to one timestep.
    """
    levels = np.log(noise_levels(alpha_bars))
    even = np.linspace(levels[0], levels[-1], count)
    return np.unique(np.interp(even, levels, np.arange(len(levels))).round().astype(np.int64))[::-1].copy()


@torch.no_grad()
def estimate_distances(
    unet: Denoiser,
    latents: Tensor,
    timesteps: Sequence[int],
    alpha_bars: Float64,
    generator: torch.Generator,
    done: Callable[[int], object] = lambda rows: None,
) -> Float64:
    """Sums over paths of |D(x_s, s) - D(x_t, t)|^2 for all pairs of descending timesteps: [K, K].

    latents: scaled x_0 [B, 1, h, w], one path each, on the device of `unet`. done: called with the rows of each call.
    """
    noisy, before = latents, 0.0
    estimates = []
    for timestep in reversed(timesteps):
        level = float(noise_levels(alpha_bars)[timestep])
        step = torch.randn(latents.shape, generator=generator).to(latents.device)
        noisy, before = noisy + (level**2 - before**2) ** 0.5 * step, level
        alpha = float(alpha_bars[timestep]) ** 0.5
        rows = torch.full((len(latents),), timestep, device=latents.device)
        estimates.append((noisy - level * unet(alpha * noisy, rows).float()).flatten(1).double().cpu())
        done(len(latents))
    paths = torch.stack(estimates[::-1], dim=1)  # [B, K, h * w]
    distances = torch.cdist(paths, paths, compute_mode="donot_use_mm_for_euclid_dist").square()
    summed: Float64 = distances.sum(0).numpy()
    return summed


def step_costs(distances: Float64, levels: Float64) -> Float64:
    """The integral of the KLUB for a step from candidate i down to candidate j: [K, K], infinite unless i < j.

    distances: E |D(x_s, s) - D(x_t, t)|^2 [K, K]; levels: descending noise levels [K]. Trapezoids in log t, in which
    the integrand is 1 / t^2 times the distance.
    """
    integrand = distances / levels**2
    widths = -np.diff(np.log(levels))
    parts = 0.5 * (integrand[:, :-1] + integrand[:, 1:]) * widths
    costs = np.full(distances.shape, np.inf)
    costs[:, 1:] = np.cumsum(np.triu(parts), axis=1)
    costs[np.tril_indices(len(costs))] = np.inf
    return costs


def best_paths(costs: Float64, counts: Iterable[int]) -> dict[int, list[int]]:
    """For each number of steps the cheapest way from the first to the last candidate: where its steps begin.

    costs: [K, K] of `step_costs`. Numbers of K or more are left out. The result has as many candidates as steps.
    """
    most = len(costs) - 1
    left, choices = [costs[:, -1]], []
    for _ in range(1, most):  # left[n - 1][i]: the least cost of n steps from candidate i to the last one
        totals = costs + left[-1]
        choices.append(totals.argmin(axis=1))
        left.append(totals.min(axis=1))
    found = {}
    for count in counts:
        if 1 <= count <= most:
            path = [0]
            for steps in range(count, 1, -1):
                path.append(int(choices[steps - 2][path[-1]]))
            found[count] = path
    return found
