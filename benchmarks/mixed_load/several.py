"""How many steps a call should have: fixed numbers beside the batcher's own choice, on a simulated GPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.mixed_load.simulated import Calls, Device, step_level
from benchmarks.mixed_load.workload import SHARES, STEPS, Arrival, arrivals, summary

GPU = Device(base=0.0011, row=0.00003, decode=0.002, call=0.0007)
"""What is estimated of the bundle's network, compiled, on an H100; nothing here was measured on a GPU."""
LOADS = (0.05, 0.3, 0.6, 0.8)
"""Of what calls of one step can do."""
MOST_ROWS = 64
ONE_STEP = "1 step"
OWN = "own choice"
WAYS = {
    ONE_STEP: Calls(),
    **{f"{count} steps": Calls(count, always=True) for count in (5, 10, 25)},
    OWN: Calls(50),
    **{f"unrolled, {count}": Calls(count, always=True, padded=True) for count in (5, 10, 25)},
}


def capacity(device: Device, calls: Calls, count: int) -> float:
    """Images a second where `count` requests have all come at once."""
    draw = np.random.default_rng(0)
    workload = [Arrival(0.0, int(steps)) for steps in draw.choice(STEPS, count, p=SHARES)]
    return count / max(step_level(workload, device, MOST_ROWS, calls))


def compare(device: Device, count: int, loads: Sequence[float] = LOADS) -> dict[str, Any]:
    """Images a second of each way, and its latencies at each load in seconds; all have the same requests."""
    most = {name: capacity(device, calls, count) for name, calls in WAYS.items()}
    latencies = []
    for load in loads:
        workload = arrivals(count, load * most[ONE_STEP], seed=1)
        ways = {name: summary(workload, step_level(workload, device, MOST_ROWS, each)) for name, each in WAYS.items()}
        latencies.append({"load": load, "ways": ways})
    shape = {"call": device.call, "base": device.base, "row": device.row, "decode": device.decode}
    return {"device": shape, "images_per_s": most, "latencies": latencies}


def table(record: dict[str, Any]) -> str:
    """Markdown: mean and 99th percentile in milliseconds, images a second."""
    names = list(record["images_per_s"])
    lines = ["| load: mean / p99, ms | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for each in record["latencies"]:
        cells = [f"{1e3 * each['ways'][name]['mean']:.0f} / {1e3 * each['ways'][name]['p99']:.0f}" for name in names]
        lines.append(f"| {100 * each['load']:.0f} % | " + " | ".join(cells) + " |")
    most = [f"{record['images_per_s'][name]:.0f}" for name in names]
    return "\n".join([*lines, "| images/s at most | " + " | ".join(most) + " |"])
