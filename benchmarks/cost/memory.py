"""Memory of a server's processes after loads of more and more rows, and the lines through it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost.measure import Amount, Report
from benchmarks.serving.memory import processes, proportional, shared_bytes
from benchmarks.wire import ask
from brats_ldm_client import Client
from server.channel import connect
from server.process import TritonServer

DECODER = "vae_decoder"
STEPS = 4
"""The server tries each number of rows three times before it settles: with fewer it would not come to the largest."""
MB = 1 << 20


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
            found = _state(server, rows)["processes"]
            points.append({"rows": rows, **found[DECODER if DECODER in found else "tritonserver"]})
            report(f"  {rows} latents in a call: {points[-1]['peak']} MB")
    return {"points": points}


def _state(server: TritonServer, rows: int) -> dict[str, Any]:
    """In MB (2^20 bytes), resident and peak of the processes of each model that has any.

    `together`: resident, with what several share counted once; /dev/shm, a part of that; the sum of the peaks.
    """
    found: dict[str, dict[str, int]] = {}
    for instance, values in processes(server).items():
        model = found.setdefault(re.sub(r"(_\d+|_gpu\d+)+$", "", instance), {"rss": 0, "peak": 0})
        model.update({key: model[key] + value for key, value in values.items()})
    pids = [server.pid, *server.stubs()]
    return {
        "rows": rows,
        "processes": found,
        "together": {
            "rss": round(sum(proportional(pid) for pid in pids) / MB),
            "shared": round(shared_bytes(server) / MB),
            "peaks": sum(values["peak"] for values in found.values()),
        },
    }


def line(rows: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Least squares of base + row * rows; `worst` is the largest error, relative to the value."""
    slope, base = np.polyfit(rows, values, 1)
    fitted = base + slope * np.asarray(rows)
    return {"base": float(base), "row": float(slope), "worst": float(np.abs(fitted / np.asarray(values) - 1).max())}
