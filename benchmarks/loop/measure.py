"""A step of the served loop, and the bare call of the same network in the same server, in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.loop.repository import CALLS, FRONT
from benchmarks.timing import spread
from benchmarks.wire import ask, settled
from server.channel import connect
from server.process import TritonServer

SAMPLERS = ("ddim", "ddpm")
WARM_UP_STEPS = 40  # in which the loop learns how many rows go together


@dataclass(frozen=True)
class Amount:
    """How much is measured. seconds: of bare calls in a round."""

    rows: tuple[int, ...]
    steps: int
    rounds: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """What the server has counted: rows of calls of either network, and calls."""

    single_rows: int
    several_rows: int
    calls: int

    def without(self, before: Done, bare: int, rows: int, several: bool) -> Done:
        """Since `before`, and without so many bare calls of `rows` rows."""
        single, more = self.single_rows - before.single_rows, self.several_rows - before.several_rows
        calls = self.calls - before.calls - bare
        return Done(single, more - bare * rows, calls) if several else Done(single - bare * rows, more, calls)


class Loop:
    """A running server of `repository`; a context manager."""

    def __init__(self, repository: Path, profile: str = "cpu") -> None:
        self._several = (repository / "unet_steps").is_dir()
        self._server = TritonServer(repository, profile)

    def __enter__(self) -> Loop:
        self._server.start()
        try:
            self._server.probe()
            self._client = connect(self._server.grpc_url)
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._server.stop()

    def generate(self, rows: int, sampler: str, steps: int) -> float:
        """Seconds of one request of so many rows, not decoded."""
        feeds = {
            "seed": np.arange(rows, dtype=np.int64)[:, None],
            "steps": np.full((rows, 1), steps, np.int32),
            "sampler": np.full((rows, 1), sampler, np.object_),
        }
        began = time.perf_counter()
        ask(self._client, FRONT, "final_latent", feeds)
        return time.perf_counter() - began

    def bare_calls(self, rows: int, steps: int, seconds: float) -> list[float]:
        """Seconds of each call of `unet`, or of `unet_steps` for more than one step, from a model of nothing else."""
        feeds = {
            "rows": np.array([rows], np.int32),
            "steps": np.array([steps if steps > 1 else 0], np.int32),
            "seconds": np.array([seconds], np.float32),
        }
        return [float(each) for each in ask(self._client, CALLS, "took", feeds)]

    def done(self) -> Done:
        """What has been computed since the start."""
        several = ["unet_steps"] if self._several else []
        counted = settled(self._client, ["unet", *several])
        rows = counted["unet_steps"].rows if several else 0
        return Done(counted["unet"].rows, rows, sum(each.calls for each in counted.values()))


def measure(loop: Loop, steps_a_call: int, amount: Amount, samplers: Sequence[str] = SAMPLERS) -> Iterator[Any]:
    """A record for each number of rows and sampler; `steps_a_call` are the most that a call may have.

    Raises:
        RuntimeError: the server has computed fewer steps than were asked for.
    """
    cells = [(rows, sampler) for rows in amount.rows for sampler in samplers]
    for rows, sampler in cells:
        loop.generate(rows, sampler, min(WARM_UP_STEPS, amount.steps))
    for rows, sampler in cells:
        before, served, calls, bare = loop.done(), [], [], 0
        for _ in range(amount.rounds):
            served.append(1e3 * loop.generate(rows, sampler, amount.steps) / amount.steps)
            took = loop.bare_calls(rows, steps_a_call, amount.seconds)
            calls.append(1e3 * float(np.median(took)))
            bare += len(took)
        counted = loop.done().without(before, bare, rows, several=steps_a_call > 1)
        made = {"rows": rows, "sampler": sampler, "most_steps_a_call": steps_a_call}
        yield made | _record(rows * amount.steps * amount.rounds, rows, steps_a_call, counted, served, calls)


def _record(
    row_steps: int, rows: int, most: int, counted: Done, served: Sequence[float], calls: Sequence[float]
) -> dict[str, Any]:
    row_calls = counted.single_rows + counted.several_rows
    if counted.single_rows + most * counted.several_rows < row_steps:
        raise RuntimeError(f"{row_steps} steps of rows were asked for, and the server counts {counted}")
    step, call = spread(served), spread(calls)
    steps_a_call = row_steps / row_calls
    share = call["median"] / steps_a_call
    return {
        "row_steps": row_steps,
        "calls": counted.calls,
        "steps_a_call": steps_a_call,
        "rows_a_call": row_calls / counted.calls,
        "step_ms": step,
        "bare_call_ms": call,
        "beside_call_ms": step["median"] - share,
        "times_the_call": step["median"] / share,
    }
