"""Clients that leave before they are answered, in every way and at every place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tritonclient.grpc as triton

from benchmarks.harness.machine import shared_bytes
from brats_ldm_client import Client, Progress
from reliability.memory import anonymous_bytes
from server.channel import connect
from server.proc import children
from server.process import TritonServer
from support.common import ROOT, heeding_signals
from support.faulty_networks import order
from support.serving import gauge, infer, scrape, start, tensors, wait_for_rows, wait_until_idle

ROWS, STEPS, LATE = 2, 500, 0.3


def cancel_unary(url: str) -> None:
    with connect(url) as raw:
        call, done, _ = start(raw, seed=list(range(ROWS)), steps=[STEPS] * ROWS)
        time.sleep(LATE)
        call.cancel()
        assert done.wait(10)


def leave_stream(url: str) -> None:
    with Client(url) as client, closing(client.stream(ROWS, steps=STEPS)) as events:
        assert isinstance(next(events), Progress)


def grpc_deadline(url: str) -> None:
    """The deadline is known to gRPC alone; the request has none."""
    with connect(url) as raw:
        _refused(lambda: infer(raw, seed=list(range(ROWS)), steps=[STEPS] * ROWS, timeout=LATE), "DEADLINE_EXCEEDED")


def told_deadline(url: str) -> None:
    """The deadline is in the request alone, as Triton's `timeout`, in microseconds."""
    with connect(url) as raw:
        asked = tensors(seed=list(range(ROWS)), steps=[STEPS] * ROWS)
        _refused(lambda: raw.infer("mri_ldm", asked, timeout=round(LATE * 1e6), client_timeout=60), "CANCELLED")


def lose_connection(url: str) -> None:
    raw = connect(url)
    _, done, _ = start(raw, seed=list(range(ROWS)), steps=[STEPS] * ROWS)
    time.sleep(LATE)
    raw.close()
    assert done.wait(10)


WAYS = (cancel_unary, leave_stream, grpc_deadline, told_deadline, lose_connection)


def _refused(call: Callable[[], object], code: str) -> None:
    try:
        call()
    except triton.InferenceServerException as error:
        if code not in str(error.status()):
            raise
    else:
        raise AssertionError("a request that should have left was answered")


def storm(server: TritonServer, leavers: int, threads: int = 8) -> dict[str, int | float]:
    """`leavers` requests that leave, by all ways in turn and several at once; then the server must be as before.

    The server is one of `write_faulty`; a step takes 0.01 s there meanwhile, so that none is answered before it leaves.
    More than 90 threads hold more steps of work at once than a server takes.
    """
    with connect(server.grpc_url) as raw, _slow(server.repository, "unet", 0.01):
        known = infer(raw, seed=[1], steps=[10]).as_numpy("image")
        # The pool of shared memory and the allocator of Python grow to their size in the first of them.
        _leave(server.grpc_url, len(WAYS) * 2, threads)
        wait_until_idle(server)
        counted, memory = gauge(server, "mri_ldm_cancelled_rows_total"), _memory(server)
        _leave(server.grpc_url, leavers, threads)
        idle = wait_until_idle(server)
        time.sleep(0.3)  # the answers that nobody waits for are sent a moment later
        after = _memory(server)
        again = infer(raw, seed=[1], steps=[10]).as_numpy("image")
        wait_until_idle(server)
    return {
        "requests that left": leavers,
        "rows not counted": leavers * ROWS - round(gauge(server, "mri_ldm_cancelled_rows_total") - counted),
        "rows left": round(scrape(server)["mri_ldm_rows_in_flight"] + scrape(server)["mri_ldm_rows_waiting"]),
        "until idle, s": round(idle, 2),
        "threads left": after["threads"] - memory["threads"],
        "growth of the models' memory, MB": round((after["resident"] - memory["resident"]) / 1e6, 1),
        "growth of shared memory, MB": round((after["shared"] - memory["shared"]) / 1e6, 1),
        "images wrong": int(not np.array_equal(known, again)),
    }


def _leave(url: str, leavers: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda way: way(url), islice(cycle(WAYS), leavers)))


def _memory(server: TritonServer) -> dict[str, int]:
    """Of the processes of all models: resident bytes and threads; and bytes in /dev/shm."""
    processes = list(children(server.pid))
    return {
        "resident": sum(anonymous_bytes(process) for process in processes),
        "threads": sum(len(os.listdir(f"/proc/{process}/task")) for process in processes),
        "shared": shared_bytes(server),
    }


def places(repository: Path, server: TritonServer) -> dict[str, float]:
    """Seconds that rows outlive a gRPC deadline in the queue, in the loop and at the decoder.

    The repository is one of `write_faulty(repository, max_rows_in_flight=4)`; a step takes 0.05 s there and a call of
    the decoder 0.5 s.
    """
    with connect(server.grpc_url) as raw:
        infer(raw, seed=[1], steps=[1])
        with _slow(repository, "unet", 0.05):
            loop = _outlives(server, raw, "mri_ldm_rows_in_flight", rows=2, steps=STEPS)
            call, done, _ = start(raw, seed=list(range(4)), steps=[STEPS // 2] * 4)
            wait_for_rows(server, 4)
            queued = _outlives(server, raw, "mri_ldm_rows_waiting", rows=2, steps=STEPS)
            assert gauge(server, "mri_ldm_rows_in_flight") == 4, "the others must go on"
            call.cancel()
            assert done.wait(10)
        wait_until_idle(server)
        with _slow(repository, "vae_decoder", 0.5):
            decoder = _outlives(server, raw, "mri_ldm_rows_in_flight", rows=8, steps=1, deadline=0.7)
    return {"in the queue, s": queued, "in the loop, s": loop, "at the decoder, s": decoder}


def _outlives(
    server: TritonServer, raw: object, rows_there: str, rows: int, steps: int, deadline: float = 0.5
) -> float:
    before = gauge(server, "mri_ldm_cancelled_requests_total")
    asked = {"seed": list(range(rows)), "steps": [steps] * rows}
    _refused(lambda: infer(raw, timeout=deadline, **asked), "DEADLINE_EXCEEDED")
    began = time.monotonic()
    while (now := scrape(server))[rows_there] or now["mri_ldm_cancelled_requests_total"] == before:
        assert time.monotonic() - began < 10, f"{rows_there} does not come to 0, or not because the client left"
        time.sleep(0.01)
    return round(time.monotonic() - began, 2)


@contextmanager
def _slow(repository: Path, network: str, seconds: float) -> Iterator[None]:
    order(repository, network, seconds=seconds)
    yield
    order(repository, network)


def killed_clients(server: TritonServer) -> dict[str, int]:
    """`brats-ldm` processes that are interrupted (Ctrl-C) or killed in the middle of their work.

    The server is one of `write_faulty`; a step takes 0.01 s there, so that the work lasts.
    """
    before = gauge(server, "mri_ldm_cancelled_rows_total")
    command = [sys.executable, "-m", "brats_ldm_client", "generate", "--url", server.grpc_url]
    command += ["-n", "4", "--steps", "1000", "--rows-per-request", "2"]
    status = []
    with _slow(server.repository, "unet", 0.01):
        for number in (signal.SIGINT, signal.SIGKILL):
            with TemporaryDirectory() as folder:
                whole = heeding_signals([*command, "--out", folder])
                client = subprocess.Popen(whole, cwd=ROOT / "client", stderr=subprocess.DEVNULL)
                wait_for_rows(server, 4)
                client.send_signal(number)
                status.append(client.wait(10))
            wait_until_idle(server)
    assert status == [130, -signal.SIGKILL], status
    return {"clients": 2, "rows not counted": 8 - round(gauge(server, "mri_ldm_cancelled_rows_total") - before)}
