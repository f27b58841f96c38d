"""The times of the calibration and then of each point, in turns; and memory. Predicts nothing itself.

The speed of a machine drifts. So one image is timed after every request, in the calibration too, and the share of the
cores' time that went to others than the server and this process is recorded.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.machine import MB, elsewhere, proportional, server_memory, shared_bytes
from benchmarks.harness.timing import in_turns, spread
from benchmarks.harness.wire import ask
from benchmarks.tables.cost import DECODER
from brats_ldm_client import Client
from brats_ldm_client._calibrate import calibrate
from server.channel import connect
from server.process import TritonServer

Report = Callable[[str], object]


@dataclass(frozen=True)
class Amount:
    """How much of everything; `short` steps where their number is not what varies."""

    calibration_rows: tuple[int, ...] = (1, 2, 4, 8)
    calibration_steps: tuple[int, ...] = (5, 25)
    calibration_rounds: int = 3
    short: int = 10
    steps: tuple[int, ...] = (5, 10, 20, 50, 100)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    requests: int = 2
    """Of each client, one after the other."""
    images: tuple[int, ...] = (1, 4, 16, 64)
    rounds: int = 3
    step_rounds: int = 5
    memory_rows: tuple[int, ...] = (1, 4, 16, 64)
    memory_rounds: int = 2
    """ONNX Runtime plans the memory of a shape in its first call, and takes it in the second."""
    decode_batches: tuple[int, ...] = (1, 2, 4)


FULL = Amount()
QUICK = Amount(
    calibration_rows=(1, 2), calibration_steps=(2, 6), calibration_rounds=1, short=2,
    steps=(2, 6), rows=(1, 4), clients=(1, 2), images=(1, 9), rounds=1, step_rounds=1, memory_rows=(1, 4),
)  # fmt: skip
# Of one point; then it is left out of further rounds. A long request needs fewer repeats.
BUDGET_S = 20.0
# The defaults of `Client.generate`.
ROWS_PER_REQUEST, CONCURRENCY = 8, 4


@dataclass(frozen=True)
class Point:
    """`at` is the value on the axis; `images` of `steps` steps are asked for, `in_flight` of them at a time."""

    at: int
    images: int
    steps: int
    in_flight: int


@dataclass
class Bench:
    """A running server, how much is measured on it, and where each time is reported."""

    server: TritonServer
    amount: Amount
    report: Report
    steps_per_call: int = 1
    """Of an unrolled network."""

    def client(self, rows: int) -> Client:
        """Sends requests of so many images, one at a time."""
        return Client(self.server.grpc_url, rows_per_request=rows, concurrency=1)


def calibration(bench: Bench) -> dict[str, Any]:
    """What `brats-ldm calibrate` finds: `model`; `reference_s` and `others` as of the other sections."""
    amount = bench.amount
    with bench.client(max(amount.calibration_rows)) as client, _Conditions(bench) as conditions:

        def tell(rows: int, steps: int, seconds: float) -> None:
            conditions.after(f"  {rows} rows, {steps} steps: {seconds:.3g} s")

        kinds = (amount.calibration_rows, amount.calibration_steps, amount.calibration_rounds)
        model = calibrate(client, *kinds, tell, steps_per_call=bench.steps_per_call)
    return {"model": asdict(model), **conditions.result()}


def by_steps(bench: Bench) -> dict[str, Any]:
    """One image."""
    points = [Point(steps, 1, steps, 1) for steps in bench.amount.steps]
    with bench.client(1) as client:
        return _measure(bench, points, lambda point: partial(_generate, client, point), bench.amount.step_rounds)


def by_rows(bench: Bench) -> dict[str, Any]:
    """One request with that many images."""
    points = [Point(rows, rows, bench.amount.short, rows) for rows in bench.amount.rows]
    with bench.client(max(bench.amount.rows)) as client:
        return _measure(bench, points, lambda point: partial(_generate, client, point), bench.amount.rounds)


def by_clients(bench: Bench) -> dict[str, Any]:
    """That many clients of one image each, which ask again as soon as they are answered: the seconds of one request.

    It is the time of all requests over the number of each client's: their rounds overlap.
    """
    amount = bench.amount
    points = [Point(clients, clients, amount.short, clients) for clients in amount.clients]
    with ExitStack() as stack:
        clients = [stack.enter_context(bench.client(1)) for _ in range(max(amount.clients))]
        threads = stack.enter_context(ThreadPoolExecutor(len(clients)))

        def ask(client: Client) -> None:
            for seed in range(amount.requests):
                client.generate(1, seed=seed, steps=amount.short)

        def call(point: Point) -> Callable[[], object]:
            return lambda: list(threads.map(ask, clients[: point.images]))

        return _measure(bench, points, call, amount.rounds, over=amount.requests)


def by_images(bench: Bench) -> dict[str, Any]:
    """`Client.generate` with its defaults: eight images a request, four requests at a time."""
    points = [
        Point(images, images, bench.amount.short, ROWS_PER_REQUEST * CONCURRENCY) for images in bench.amount.images
    ]
    with Client(bench.server.grpc_url) as client:
        return _measure(bench, points, lambda point: partial(_generate, client, point), bench.amount.rounds)


def _generate(client: Client, point: Point) -> None:
    client.generate(point.images, seed=0, steps=point.steps)


def _measure(
    bench: Bench, points: Sequence[Point], call: Callable[[Point], Callable[[], object]], rounds: int, over: int = 1
) -> dict[str, Any]:
    """The points with their seconds, of `over` requests each, and the machine's state. The largest is the warm-up."""
    calls = {str(point.at): call(point) for point in points}
    calls[str(points[-1].at)]()
    with _Conditions(bench) as conditions:
        times = in_turns(calls, rounds, BUDGET_S, conditions.after)
    measured = []
    for point in points:
        seconds = [taken / over for taken in times[str(point.at)]]
        measured.append({**asdict(point), "seconds": {**spread(seconds), "all": seconds}})
    return {"points": measured, **conditions.result()}


class _Conditions:
    """The machine during the block: `reference_s` of one image, and the share of the cores' time of `others`."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._others = bench, 0.0
        self._reference: list[float] = []

    def __enter__(self) -> _Conditions:
        self._client = self._bench.client(1)
        self._client.generate(1, seed=0, steps=1)
        self._pids = [os.getpid(), self._bench.server.pid, *self._bench.server.stubs()]
        self._began, self._before = time.perf_counter(), elsewhere(self._pids)
        return self

    def after(self, line: str) -> None:
        """A request has been timed; now the image."""
        self._bench.report(line)
        began = time.perf_counter()
        self._client.generate(1, seed=0, steps=self._bench.amount.short)
        self._reference.append(time.perf_counter() - began)

    def __exit__(self, *_: object) -> None:
        cores_s = (time.perf_counter() - self._began) * len(os.sched_getaffinity(0))
        self._others = (elsewhere(self._pids) - self._before) / cores_s
        self._client.close()

    def result(self) -> dict[str, Any]:
        return {"reference_s": spread(self._reference), "others": self._others}


# --- memory, after loads of more and more rows

MEMORY_STEPS = 4
"""The server tries each number of rows three times before it settles. Fewer steps would not reach the largest."""


def memory_by_rows(repository: Path, profile: str, amount: Amount, report: Report) -> dict[str, Any]:
    """A new server; after each load, with both models asked for that many images in one request."""
    with TritonServer(repository, profile) as server, Client(server.grpc_url, rows_per_request=64) as client:
        points = [_state(server, 0)]
        for rows in amount.memory_rows:
            for _ in range(amount.memory_rounds):
                client.generate(rows, seed=0, steps=MEMORY_STEPS)
                for _ in client.stream(rows, seed=0, steps=MEMORY_STEPS):
                    pass
            points.append(_state(server, rows))
            report(f"  {rows} rows: {points[-1]['together']['rss']:.0f} MB")
        return {"points": points, "steps": MEMORY_STEPS}


def memory_by_decode_batch(repository: Path, profile: str, amount: Amount, report: Report) -> dict[str, Any]:
    """A new server; memory of the decoder's process, or of the server where it has none, by the latents of a call."""
    points = []
    with TritonServer(repository, profile) as server, connect(server.grpc_url) as client:
        for rows in amount.decode_batches:
            latents = np.random.default_rng(0).standard_normal((rows, 1, 64, 64), np.float32)
            for _ in range(amount.memory_rounds):
                ask(client, "vae_decoder", "image", {"latent": latents})
            processes = _state(server, rows)["processes"]
            points.append({"rows": rows, **processes[DECODER if DECODER in processes else "tritonserver"]})
            report(f"  {rows} latents in a call: {points[-1]['peak']} MB")
    return {"points": points}


def _state(server: TritonServer, rows: int) -> dict[str, Any]:
    """In MB (2^20 bytes), resident and peak of the processes of each model.

    `together`: resident, with shared memory counted once; /dev/shm, a part of that; the sum of the peaks.
    """
    processes: dict[str, dict[str, int]] = {}
    for instance, values in server_memory(server).items():
        model = processes.setdefault(re.sub(r"(_\d+|_gpu\d+)+$", "", instance), {"rss": 0, "peak": 0})
        model.update({key: model[key] + value for key, value in values.items()})
    pids = [server.pid, *server.stubs()]
    return {
        "rows": rows,
        "processes": processes,
        "together": {
            "rss": round(sum(proportional(pid) for pid in pids) / MB),
            "shared": round(shared_bytes(server) / MB),
            "peaks": sum(values["peak"] for values in processes.values()),
        },
    }
