"""Where a trajectory stops on its way from noise to image: its timesteps. NumPy only.

Every grid is strictly descending. `alpha_bars` [T] is the noise schedule, and lambda = log(alpha / sigma) half of the
logarithmic signal-to-noise ratio. All grids but "leading" begin at the noisiest timestep, T - 1, whose latents are the
nearest to the pure noise that a trajectory starts from.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LEADING, LOG_SNR, KARRAS, ALIGNED = TIMESTEP_GRIDS = ("leading", "log_snr", "karras", "aligned")
AlignedTimesteps = tuple[tuple[int, ...], ...]
"""Grids that were optimised for the weights, one for each of some numbers of steps: `training.align_steps`."""
RHO = 7.0
"""Of Karras et al. 2022: the larger, the more steps at little noise."""
Timesteps = NDArray[np.int32]
Float64 = NDArray[np.float64]


def grid_timesteps(grid: str, steps: int, alpha_bars: Float64, aligned: AlignedTimesteps = ()) -> Timesteps:
    """The timesteps [steps] of a grid, for 1 to T steps.

    Raises:
        ValueError: an unknown grid, or "aligned" without aligned timesteps.
    """
    if grid == LEADING:
        return leading(len(alpha_bars), steps)
    if grid == LOG_SNR:
        return nearest_timesteps(_log_snr(alpha_bars, steps), alpha_bars)
    if grid == KARRAS:
        return nearest_timesteps(_karras(alpha_bars, steps), alpha_bars)
    if grid == ALIGNED and aligned:
        return _aligned(aligned, steps, alpha_bars)
    reason = "these weights have no aligned timesteps" if grid == ALIGNED else "there is no such grid"
    raise ValueError(f"timestep_grid is {grid!r}: {reason}; the grids are {', '.join(TIMESTEP_GRIDS)}")


def leading(trained: int, steps: int) -> Timesteps:
    """The grid of MONAI before 1.6: 980, 960, ..., 0 for 50 of 1000 steps.

    Steps that do not divide T leave its noisiest end unused, as upstream does: `samplers.left_out`.
    """
    return (np.arange(steps, dtype=np.int32) * np.int32(trained // steps))[::-1].copy()


def half_log_snr(alpha_bars: Float64) -> Float64:
    """lambda = log(alpha / sigma) [T], descending."""
    lambdas: Float64 = 0.5 * np.log(alpha_bars / (1 - alpha_bars))
    return lambdas


def _log_snr(alpha_bars: Float64, steps: int) -> Float64:
    """lambda [steps], evenly spaced from the noisiest to the cleanest timestep (Lu et al. 2022, section 4.1)."""
    lambdas = half_log_snr(alpha_bars)
    even: Float64 = np.linspace(lambdas[-1], lambdas[0], steps)
    return even


def _karras(alpha_bars: Float64, steps: int) -> Float64:
    """lambda [steps] of Karras et al. 2022, eq. 5, where the noise is sigma / alpha = exp(-lambda)."""
    largest, smallest = np.exp(-half_log_snr(alpha_bars)[[-1, 0]] / RHO)
    lambdas: Float64 = -RHO * np.log(np.linspace(largest, smallest, steps))
    return lambdas


def _aligned(aligned: AlignedTimesteps, steps: int, alpha_bars: Float64) -> Timesteps:
    """The optimised grid, or one between the points of the optimised grid whose number of steps is the nearest.

    As Sabour et al. 2024, section 5, linear in log(sigma / alpha). The last point of a grid is the cleanest noise
    level, which no step starts from.
    """
    nearest = min(aligned, key=lambda grid: (abs(len(grid) - steps), -len(grid)))
    if len(nearest) == steps:
        return np.array(nearest, np.int32)
    lambdas = half_log_snr(alpha_bars)
    points = lambdas[[*nearest, 0]]
    new = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(points)), points)
    return nearest_timesteps(new[:-1], alpha_bars)


def nearest_timesteps(lambdas: Float64, alpha_bars: Float64) -> Timesteps:
    """The timesteps next to ascending lambdas [n], moved apart where several round to the same one: all differ.

    At little noise few timesteps lie in a wide range of lambda, so there a grid of many steps becomes n - 1, ..., 1, 0.
    """
    trained = half_log_snr(alpha_bars)
    timesteps = np.interp(-lambdas, -trained, np.arange(len(trained))).round().astype(np.int32)
    place = np.arange(len(lambdas), dtype=np.int32)
    # Strictly descending means: timestep + place does not rise. First up from the clean end, then down from the noisy.
    raised = np.maximum.accumulate((timesteps + place)[::-1])[::-1] - place
    return np.minimum(raised, len(trained) - 1 - place).astype(np.int32)


def read_aligned(lists: Sequence[Sequence[int]], trained: int) -> AlignedTimesteps:
    """Aligned timesteps from a file, checked.

    Raises:
        ValueError: a list that is no grid of T = `trained` timesteps, or two with as many steps.
    """
    if not isinstance(lists, list) or not all(isinstance(grid, list) for grid in lists):
        raise ValueError("aligned_timesteps must be a list of lists of timesteps")
    for grid in lists:
        whole = all(type(t) is int and 0 <= t < trained for t in grid)
        if not grid or not whole or any(later >= t for t, later in pairwise(grid)):
            raise ValueError(f"aligned_timesteps has {grid}; it must descend strictly within 0..{trained - 1}")
    if len({len(grid) for grid in lists}) < len(lists):
        raise ValueError("aligned_timesteps has two lists of the same length")
    return tuple(tuple(grid) for grid in lists)
