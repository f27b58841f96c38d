"""The times of the calibration and then of each point, in turns; and memory. Predicts nothing itself.

The speed of a machine drifts. So one image is timed after every request, in the calibration too, and the share of the
cores' time that went to others than the server and this process is recorded.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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


@dataclass(frozen=True)
class Amount:
    """How much of everything; `short` steps where their number is not what varies."""

    calibrated: tuple[Sequence[int], Sequence[int], int] = ((1, 2, 4, 8), (5, 25), 3)
    """Rows, steps and rounds of the calibration."""
    short: int = 10
    steps: tuple[int, ...] = (5, 10, 20, 50, 100)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    images: tuple[int, ...] = (1, 4, 16, 64)
    rounds: int = 3
    memory_rows: tuple[int, ...] = (1, 4, 16, 64)


FULL = Amount()
QUICK = Amount(((1, 2), (2, 6), 1), 2, steps=(2, 6), rows=(1, 4), clients=(1, 2), images=(1, 9), rounds=1,
               memory_rows=(1, 4))  # fmt: skip
# Of one point; then it is left out of further rounds. A long request needs fewer repeats.
BUDGET_S = 20.0
REQUESTS = 2  # of each of several clients, one after the other
# The defaults of `Client.generate`.
ROWS_PER_REQUEST, CONCURRENCY = 8, 4


@dataclass(frozen=True)
class Point:
    """`at` is the value on the axis; `images` of `steps` steps are asked for, `in_flight` of them at a time."""

    at: int
    images: int
    steps: int
    in_flight: int


def calibration(server: TritonServer, amount: Amount, steps_per_call: int) -> dict[str, Any]:
    """What `brats-ldm calibrate` finds: `model`; `reference_s` and `others` as of the panels.

    steps_per_call: of an unrolled network.
    """
    with _one_request_client(server) as client, _Conditions(server, amount) as conditions:

        def tell(rows: int, steps: int, seconds: float) -> None:
            conditions.after(f"  {rows} rows, {steps} steps: {seconds:.3g} s")

        model = calibrate(client, *amount.calibrated, tell, steps_per_call=steps_per_call)
    return {"model": asdict(model), **conditions.result()}


def panel(server: TritonServer, amount: Amount, axis: str) -> dict[str, Any]:
    """The points of an axis.

    steps: of one image. rows: images of one request. clients: of one image each. images: of one `Client.generate` with
    its defaults, eight images a request and four requests at a time.
    """
    points = [_point(axis, at, amount.short) for at in getattr(amount, axis)]
    if axis == "clients":
        with _clients(server, max(amount.clients)) as ask_at_once:
            return _measure(server, amount, points, ask_at_once, over=REQUESTS)
    with Client(server.grpc_url) if axis == "images" else _one_request_client(server) as client:
        return _measure(server, amount, points, lambda point: client.generate(point.images, seed=0, steps=point.steps))


def _point(axis: str, at: int, short: int) -> Point:
    if axis == "steps":
        return Point(at, 1, at, 1)
    return Point(at, at, short, ROWS_PER_REQUEST * CONCURRENCY if axis == "images" else at)


def _one_request_client(server: TritonServer) -> Client:
    return Client(server.grpc_url, rows_per_request=64, concurrency=1)


@contextmanager
def _clients(server: TritonServer, most: int) -> Iterator[Callable[[Point], object]]:
    """Many clients; each asks again as soon as it is answered.

    The seconds of one request are the time of all over the number of each client's: their rounds overlap.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(_one_request_client(server)) for _ in range(most)]
        threads = stack.enter_context(ThreadPoolExecutor(most))

        def ask_repeatedly(client: Client, steps: int) -> None:
            for seed in range(REQUESTS):
                client.generate(1, seed=seed, steps=steps)

        yield lambda point: list(threads.map(partial(ask_repeatedly, steps=point.steps), clients[: point.images]))


def _measure(
    server: TritonServer, amount: Amount, points: Sequence[Point], call: Callable[[Point], object], over: int = 1
) -> dict[str, Any]:
    """The points with their seconds, of `over` requests each, and the machine's state. The largest is the warm-up."""
    call(points[-1])
    with _Conditions(server, amount) as conditions:
        calls = {str(point.at): partial(call, point) for point in points}
        times = in_turns(calls, amount.rounds, BUDGET_S, conditions.after)
    measured = []
    for point in points:
        seconds = [taken / over for taken in times[str(point.at)]]
        measured.append({**asdict(point), "seconds": {**spread(seconds), "all": seconds}})
    return {"points": measured, **conditions.result()}


class _Conditions:
    """The machine during the block: `reference_s` of one image, and the share of the cores' time of `others`."""

    def __init__(self, server: TritonServer, amount: Amount) -> None:
        self._client, self._steps, self._others = _one_request_client(server), amount.short, 0.0
        self._pids = [os.getpid(), server.pid, *server.stubs()]
        self._reference: list[float] = []

    def __enter__(self) -> _Conditions:
        self._client.generate(1, seed=0, steps=1)
        self._began, self._before = time.perf_counter(), elsewhere(self._pids)
        return self

    def after(self, line: str) -> None:
        """A request has been timed; now the image."""
        print(line, flush=True)
        began = time.perf_counter()
        self._client.generate(1, seed=0, steps=self._steps)
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
MEMORY_ROUNDS = 2
"""ONNX Runtime plans the memory of a shape in its first call, and takes it in the second."""
DECODE_BATCHES = (1, 2, 4)


def memory_by_rows(repository: Path, profile: str, amount: Amount) -> dict[str, Any]:
    """A new server; after each load, with both models asked for that many images in one request."""
    with TritonServer(repository, profile) as server, _one_request_client(server) as client:
        points = [_state(server, 0)]
        for rows in amount.memory_rows:
            for _ in range(MEMORY_ROUNDS):
                client.generate(rows, seed=0, steps=MEMORY_STEPS)
                for _ in client.stream(rows, seed=0, steps=MEMORY_STEPS):
                    pass
            points.append(_state(server, rows))
            print(f"  {rows} rows: {points[-1]['together']['rss']:.0f} MB", flush=True)
        return {"points": points, "steps": MEMORY_STEPS}


def memory_by_decode_batch(repository: Path, profile: str, amount: Amount) -> dict[str, Any]:
    """A new server; memory of the decoder's process, or of the server where it has none, by the latents of a call."""
    points = []
    with TritonServer(repository, profile) as server, connect(server.grpc_url) as client:
        for rows in DECODE_BATCHES:
            latents = np.random.default_rng(0).standard_normal((rows, 1, 64, 64), np.float32)
            for _ in range(MEMORY_ROUNDS):
                ask(client, "vae_decoder", "image", {"latent": latents})
            processes = _state(server, rows)["processes"]
            points.append({"rows": rows, **processes.get(DECODER, processes["tritonserver"])})
            print(f"  {rows} latents in a call: {points[-1]['peak']} MB", flush=True)
    return {"points": points}


def _state(server: TritonServer, rows: int) -> dict[str, Any]:
    """In MB (2^20 bytes), resident and peak of the processes of each model.

    `together`: resident, with shared memory counted once; /dev/shm, a part of that; the sum of the peaks.
    """
    processes: dict[str, dict[str, int]] = {}
    for instance, values in server_memory(server).items():
        model = processes.setdefault(re.sub(r"(_\d+|_gpu\d+)+$", "", instance), {"rss": 0, "peak": 0})
        model.update({key: model[key] + value for key, value in values.items()})
    together = {
        "rss": round(sum(proportional(pid) for pid in [server.pid, *server.stubs()]) / MB),
        "shared": round(shared_bytes(server) / MB),
        "peaks": sum(values["peak"] for values in processes.values()),
    }
    return {"rows": rows, "processes": processes, "together": together}
