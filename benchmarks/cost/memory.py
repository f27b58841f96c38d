"""Memory of a server's processes after loads of more and more rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost.measure import Amount, Report
from benchmarks.harness.machine import MB, proportional, server_memory, shared_bytes
from benchmarks.harness.wire import ask
from benchmarks.tables.cost import DECODER
from brats_ldm_client import Client
from server.channel import connect
from server.process import TritonServer

STEPS = 4
"""The server tries each number of rows three times before it settles. Fewer steps would not reach the largest."""


def by_rows(repository: Path, profile: str, amount: Amount, report: Report) -> dict[str, Any]:
    """A new server; after each load, with both models asked for that many images in one request."""
    with TritonServer(repository, profile) as server, Client(server.grpc_url, rows_per_request=64) as client:
        points = [_state(server, 0)]
        for rows in amount.memory_rows:
            for _ in range(amount.memory_rounds):
                client.generate(rows, seed=0, steps=STEPS)
                for _ in client.stream(rows, seed=0, steps=STEPS):
                    pass
            points.append(_state(server, rows))
            report(f"  {rows} rows: {points[-1]['together']['rss']:.0f} MB")
        return {"points": points, "steps": STEPS}


def by_decode_batch(repository: Path, profile: str, amount: Amount, report: Report) -> dict[str, Any]:
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
