"""Times of several contestants, taken in turns, so that other work on the machine affects all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Times = dict[str, list[float]]
PAUSE_S = 0.05


def in_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    budget_s: float = float("inf"),
    report: Callable[[str], object] = lambda line: None,
) -> Times:
    """Seconds of each call, by rounds. Each round has an order of its own, so that nobody always follows the same one.

    Warm all contestants up before. One that has used up `budget_s` seconds is left out of further rounds, so its list
    is shorter.
    """
    times: Times = {name: [] for name in contestants}
    draw = random.Random(0)
    for number in range(rounds):
        for name in draw.sample(list(contestants), len(contestants)):
            if sum(times[name]) < budget_s:
                began = time.perf_counter()
                contestants[name]()
                times[name].append(time.perf_counter() - began)
                report(f"  round {number + 1} of {rounds}: {name} {times[name][-1]:.3g} s")
    return times


def woken(runs: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[list[float]]]:
    """Seconds of each call [rounds, calls], in turns, after one a round that is not counted.

    For runtimes in this process: during that call its threads wake, and those of the one before stop spinning.
    """
    for run in runs.values():
        run()
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            time.sleep(PAUSE_S)
            times[name].append(in_turns({name: run}, calls)[name])
    return times


def repeated(run: Callable[[], object], repeats: int, wait: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each call, after at most three that are not counted. `wait` returns when the device has finished."""
    for _ in range(min(3, repeats)):
        run()
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - began)
    return times


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, 90th percentile, and how many; one value has no spread."""
    array = np.asarray(values)
    return {
        "median": float(np.median(array)),
        "min": float(array.min()),
        "max": float(array.max()),
        "p90": float(np.quantile(array, 0.9)),
        "n": len(array),
    }


def ratio(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """How many of `ours` go into `baseline`, round by round where both took part: median, smallest, largest."""
    ratios = [base / own for own, base in zip(ours, baseline, strict=False)]
    return {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)}


def compare(times: Times, baseline: str) -> dict[str, Any]:
    """By contestant: its seconds, how it spreads, and how many times faster than `baseline` it is."""
    return {
        name: {**spread(seconds), "seconds": seconds, "faster_than_baseline": ratio(seconds, times[baseline])}
        for name, seconds in times.items()
        if seconds
    }
