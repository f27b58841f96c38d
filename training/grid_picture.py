"""A picture of timestep grids: the noise level at which each step begins."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from training.config import NoiseSchedule
from training.losses import alpha_bars_of
from training.step_alignment import noise_levels

SHOWN = (5, 10, 20)
"""Numbers of steps, a panel each."""


def draw_grids(schedule: NoiseSchedule, grids: Sequence[Sequence[int]]) -> Figure:
    """Aligned grids beside the three that need no measurement, log_snr and karras before rounding to timesteps."""
    levels = noise_levels(alpha_bars_of(schedule).double().numpy())
    trained = len(levels)
    aligned = {len(grid): levels[list(grid)] for grid in grids}
    shown = [steps for steps in SHOWN if steps in aligned] or sorted(aligned)[-1:]
    figure = Figure(figsize=(4 * len(shown), 3.6), layout="constrained")
    for axes, steps in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        share = np.linspace(0, 1, steps)
        powers = levels[-1] ** (1 / 7), levels[0] ** (1 / 7)
        others = {
            "leading": levels[np.arange(steps)[::-1] * (trained // steps)],
            "log_snr": levels[-1] ** (1 - share) * levels[0] ** share,
            "karras": (powers[0] + share * (powers[1] - powers[0])) ** 7,
        }
        for name, values in others.items():
            axes.plot(range(1, steps + 1), values, "o-", markersize=3, linewidth=1, label=name)
        axes.plot(range(1, steps + 1), aligned[steps], "ko-", markersize=4, linewidth=1.5, label="aligned")
        axes.set(yscale="log", title=f"{steps} steps", xlabel="step", ylabel="sigma / alpha at its beginning")
        axes.legend(frameon=False, fontsize=8)
    return figure
