"""Images a second: `brats-ldm bulk` in turns with Triton's own client, which drops what it gets."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from benchmarks.bulk.command import end, start
from benchmarks.harness.timing import compare, in_turns
from benchmarks.harness.wire import image_feeds, request
from server.channel import connect
from server.process import TritonServer

ROWS, IN_FLIGHT = 8, 8  # the defaults of `brats-ldm bulk`
SAMPLER = "dpmpp_2m"


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    images: int
    steps: int
    shard_size: int
    rounds: int
    formats: tuple[str, ...] = ("webdataset", "dicom")


FULL = Amount(images=320, steps=20, shard_size=100, rounds=3)
QUICK = Amount(images=20, steps=2, shard_size=8, rounds=1, formats=("webdataset",))


def measure(repository: Path, profile: str, work: Path, amount: Amount) -> dict[str, Any]:
    """Seconds by contestant; `faster_than_baseline` is the share of the bare server's images a second."""
    with TritonServer(repository, profile) as server, connect(server.grpc_url) as client:
        server.probe()
        contestants = {"bare server": partial(bare, client, amount)}
        for name in amount.formats:
            contestants[name] = partial(bulk, server.grpc_url, work / f"rate-{name}", name, amount)
        # Memory is allocated, and the server learns how many rows of a step pay.
        bare(client, replace(amount, images=ROWS * IN_FLIGHT))
        times = in_turns(contestants, amount.rounds, report=lambda line: print(line, flush=True))
    return {**vars(amount), "sampler": SAMPLER, "contestants": compare(times, "bare server")}


def bulk(url: str, folder: Path, name: str, amount: Amount) -> None:
    """The whole command, from its start to its summary page."""
    shutil.rmtree(folder, ignore_errors=True)
    how = ("--count", amount.images, "--shard-size", amount.shard_size, "--steps", amount.steps, "--sampler", SAMPLER)
    end(start("bulk", "--url", url, "--out", folder, "--format", name, *map(str, how)))


def bare(client: triton.InferenceServerClient, amount: Amount) -> None:
    """The same requests by Triton's own client, as many in flight, without a file."""
    room = threading.Semaphore(IN_FLIGHT)
    errors: list[Exception] = []

    def answered(result: Any, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        room.release()

    for first in range(0, amount.images, ROWS):
        room.acquire()
        seeds = range(first, min(first + ROWS, amount.images))
        sampler = np.full((len(seeds), 1), SAMPLER.encode(), np.object_)
        feeds = {**image_feeds(seeds, amount.steps), "sampler": sampler}
        inputs, outputs = request(triton, ("image", "provenance"), feeds)
        client.async_infer("mri_ldm", inputs, answered, outputs=outputs)
    for _ in range(IN_FLIGHT):
        room.acquire()
    if errors:
        raise errors[0]
