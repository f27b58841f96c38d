"""What arrives when, and what is told of the latencies."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEPS, SHARES = (10, 25, 50), (0.4, 0.3, 0.3)
MEAN_STEPS = sum(steps * share for steps, share in zip(STEPS, SHARES, strict=True))


@dataclass(frozen=True)
class Arrival:
    """A request for one image, `seconds` after the start."""

    seconds: float
    steps: int


def arrivals(count: int, rate: float, seed: int) -> list[Arrival]:
    """A Poisson process of `rate` requests a second, given that it makes `count` in count / rate seconds.

    Then the rate is what it is called even of few requests. So is the mix: shares of steps are SHARES but for rounding.
    """
    draw = random.Random(seed)
    seconds = sorted(draw.uniform(0, count / rate) for _ in range(count))
    steps = [STEPS[int(np.searchsorted(np.cumsum(SHARES), (i + 0.5) / count))] for i in range(count)]
    draw.shuffle(steps)
    return [Arrival(*each) for each in zip(seconds, steps, strict=True)]


def summary(workload: Sequence[Arrival], latencies: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p99 and the mean by number of steps, in seconds."""
    values = np.asarray(latencies)
    by_steps = {
        f"mean_{steps}_steps": float(values[[arrival.steps == steps for arrival in workload]].mean()) for steps in STEPS
    }
    return {
        "mean": float(values.mean()),
        "p50": float(np.quantile(values, 0.5)),
        "p99": float(np.quantile(values, 0.99)),
        **by_steps,
    }
