"""How long images take on a server: a model of the time, fitted to a few requests, and what it predicts."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ._errors import InvalidRequest

if TYPE_CHECKING:
    from ._client import Client

ROWS, STEPS, REPEATS = (1, 2, 4, 8), (5, 25), 3
UNSTEADY = 0.3
"""A spread above which the output says that something else ran."""


@dataclass(frozen=True)
class Calibration:
    """Seconds: of a request, `step_base` + `step_row` * rows of a step, and `decode` of each image.

    `worst` is the largest relative error of the model on the requests that it was fitted to, `spread` how far the
    repeats of one of them are apart, over their median: what another load on the machine moves.
    `steps_per_call`: the steps that a network computes in every call, even if fewer are needed.
    """

    request: float
    step_base: float
    step_row: float
    decode: float
    worst: float
    spread: float = 0.0
    steps_per_call: int = 1

    def predict(self, images: int, steps: int = 50, rows_in_flight: int = 32) -> float:
        """Seconds for `images` images of `steps` steps, `rows_in_flight` of them at once.

        Raises:
            InvalidRequest: a number below 1.
        """
        if min(images, steps, rows_in_flight) < 1:
            raise InvalidRequest(f"images ({images}), steps ({steps}) and images at once ({rows_in_flight}) start at 1")
        waves = math.ceil(images / min(rows_in_flight, images))
        steps = computed(steps, self.steps_per_call)
        return self.request + waves * steps * self.step_base + images * (steps * self.step_row + self.decode)


def computed(steps: int, steps_per_call: int) -> int:
    """Steps that are computed for `steps`, in whole calls."""
    return math.ceil(steps / steps_per_call) * steps_per_call


def calibrate(
    client: Client,
    rows: Sequence[int] = ROWS,
    steps: Sequence[int] = STEPS,
    repeats: int = REPEATS,
    report: Callable[[int, int, float], None] | None = None,
    steps_per_call: int = 1,
    decoder: str | None = None,
) -> Calibration:
    """Time requests of `rows` images with `steps` steps, medians of `repeats`, on an otherwise idle server.

    The client must send as many rows in a request as `rows` has at most. `report(rows, steps, seconds)` is called after
    each request. They are sent round by round: what else the machine does then hits all kinds alike.
    `steps_per_call`: see `Calibration`. `decoder`: of the images, as for `Client.generate`; sampler and timestep grid
    change nothing.

    Raises:
        InvalidRequest: fewer than two different numbers of rows, or of steps in whole calls: there are four unknowns.
    """
    if min(*rows, *steps, repeats, steps_per_call) < 1 or len(set(rows)) < 2 or len(set(steps)) < 2:
        raise InvalidRequest(
            f"give two different numbers of rows and two of steps, or more, not {list(rows)} and {list(steps)}"
        )
    if len({computed(depth, steps_per_call) for depth in steps}) < 2:
        raise InvalidRequest(f"in calls of {steps_per_call} steps, {list(steps)} steps are as many calls")
    # Memory is allocated, kernels are chosen, and the server learns how many rows of a step pay.
    client.generate(max(rows), seed=0, steps=max(steps), decoder=decoder)
    times: dict[tuple[int, int], list[float]] = {(count, depth): [] for count in rows for depth in steps}
    for _ in range(repeats):
        for (count, depth), seconds in times.items():
            seconds.append(_seconds(client, count, depth, decoder))
            if report is not None:
                report(count, depth, seconds[-1])
    calibration = fit([(*kind, statistics.median(seconds)) for kind, seconds in times.items()], steps_per_call)
    spread = max((max(seconds) - min(seconds)) / statistics.median(seconds) for seconds in times.values())
    return replace(calibration, spread=spread)


def fit(measured: Sequence[tuple[int, int, float]], steps_per_call: int = 1) -> Calibration:
    """Least squares of relative errors over (rows, steps, seconds); no part is negative.

    Active set: a part that would be negative is set to 0 and the others are fitted again.
    """
    made = [(rows, computed(steps, steps_per_call)) for rows, steps, _ in measured]
    table = np.array([(1.0, steps, steps * rows, rows) for rows, steps in made])
    seconds = np.array([took for *_, took in measured])
    parts, kept = np.zeros(4), list(range(4))
    while kept:
        weighted = table[:, kept] / seconds[:, None]
        solution, *_ = np.linalg.lstsq(weighted, np.ones(len(seconds)), rcond=None)
        if (solution >= 0).all():
            parts[kept] = solution
            break
        kept.pop(int(solution.argmin()))
    worst = float(np.abs(table @ parts / seconds - 1).max())
    request, step_base, step_row, decode = map(float, parts)
    return Calibration(request, step_base, step_row, decode, worst, steps_per_call=steps_per_call)


def describe(calibration: Calibration, steps: int, rows_in_flight: int, images: Sequence[int]) -> str:
    """For people."""
    lines = [
        f"step       {1e3 * calibration.step_base:.1f} ms + {1e3 * calibration.step_row:.1f} ms a row",
        f"decoding   {1e3 * calibration.decode:.0f} ms an image",
        f"request    {1e3 * calibration.request:.0f} ms",
        f"off by at most {calibration.worst:.0%} on what was measured, "
        f"whose repeats differ by up to {calibration.spread:.0%}",
    ]
    if calibration.steps_per_call > 1:
        lines[0] += f", in whole calls of {calibration.steps_per_call} steps"
    if calibration.spread > UNSTEADY:
        lines.append("something else ran on the server or its machine: calibrate again when they are idle")
    lines += ["", f"predicted, not run: {steps} steps, {rows_in_flight} images at once"]
    for count in images:
        took = duration(calibration.predict(count, steps, rows_in_flight))
        lines.append(f"  {count:>9,} {'image ' if count == 1 else 'images'}  {took}")
    return "\n".join(lines)


def as_json(calibration: Calibration, steps: int, rows_in_flight: int, images: Sequence[int]) -> str:
    """For programs: the model's parts and the predictions, all times in seconds."""
    predictions = [{"images": count, "seconds": calibration.predict(count, steps, rows_in_flight)} for count in images]
    asked = {"steps": steps, "rows_in_flight": rows_in_flight, "predictions": predictions}
    return json.dumps({"model": asdict(calibration), **asked}, indent=2)


def _seconds(client: Client, rows: int, steps: int, decoder: str | None) -> float:
    began = time.perf_counter()
    client.generate(rows, seed=0, steps=steps, decoder=decoder)
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
