"""What a second server brings: `brats-ldm bulk` on one server, and twice the images on two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bulk.command import end, start
from benchmarks.harness.device import Device
from benchmarks.harness.timing import in_turns, ratio, spread
from benchmarks.scale import engines
from benchmarks.scale.devices import on_core, write_single_threaded, write_waiting
from server.process import TritonServer

SAMPLER = "dpmpp_2m"


@dataclass(frozen=True)
class Amount:
    """How much of everything. images: of one server."""

    device: Device
    images: int
    core_images: int
    steps: int
    shard_size: int
    rounds: int
    engines: tuple[str, ...]


FULL = Amount(Device(0.02, 0.002, 0.005), 480, 60, 20, 40, 2, ("", "ray", "dask"))
QUICK = Amount(Device(0.001, 0.001, 0.001), 16, 8, 2, 4, 1, ("",))


def measure(repository: Path, profile: str, work: Path, amount: Amount) -> Iterator[tuple[str, Any]]:
    """`waiting`: servers whose networks wait, by engine. `cores`: a core for each server."""
    shutil.rmtree(work / "servers", ignore_errors=True)
    waiting = write_waiting(repository, work / "servers" / "waiting", amount.device)
    single = write_single_threaded(repository, work / "servers" / "single", profile)
    yield "amount", {**asdict(amount), "sampler": SAMPLER}
    with TritonServer(waiting, None) as one, TritonServer(waiting, None) as other:
        urls = _ready(one, other)
        for engine in amount.engines:
            with engines.cluster(engine, 2 * len(urls)) as variables:
                run = partial(_bulk, work, engine, variables, amount)
                yield f"waiting {engine}".strip(), _efficiency(urls, amount.images, run, amount.rounds)
    if len(os.sched_getaffinity(0)) < 2:
        return
    with on_core(TritonServer(single, profile), 0) as one, on_core(TritonServer(single, profile), 1) as other:
        run = partial(_bulk, work, "", {}, amount)
        yield "cores", _efficiency(_ready(one, other), amount.core_images, run, amount.rounds)


def _ready(*servers: TritonServer) -> Sequence[str]:
    for server in servers:
        server.probe()
    return [server.grpc_url for server in servers]


def _efficiency(
    urls: Sequence[str], images: int, bulk: Callable[[Sequence[str], int], object], rounds: int
) -> Mapping[str, Any]:
    """Seconds of one server, and of two with twice the images; and of one image, which is mostly start and end.

    efficiency: both without start and end, one over two, by rounds. Two servers have as much of it, or more.
    """
    contestants = {
        "start": partial(bulk, urls[:1], 1),
        "one": partial(bulk, urls[:1], images),
        "two": partial(bulk, urls, 2 * images),
    }
    for each in (urls[:1], urls[1:]):  # memory is allocated, and each server learns how many rows pay
        bulk(each, images // 2)
    times = in_turns(contestants, rounds, report=lambda line: print(line, flush=True))
    start = min(times["start"])
    one, two = ([seconds - start for seconds in times[name]] for name in ("one", "two"))
    spreads = {name: {**spread(seconds), "seconds": seconds} for name, seconds in times.items()}
    return {"images": images, **spreads, "efficiency": ratio(two, one)}


def _bulk(
    work: Path, engine: str, variables: Mapping[str, str], amount: Amount, urls: Sequence[str], images: int
) -> None:
    """The whole command; twice the servers get twice the requests at a time, and twice the workers."""
    folder = work / "servers" / "out"
    shutil.rmtree(folder, ignore_errors=True)
    how: dict[str, object] = {
        "--count": images,
        "--shard-size": amount.shard_size,
        "--steps": amount.steps,
        "--concurrency": 8 * len(urls),
    }
    if engine:
        how |= {"--engine": engine, "--workers": 2 * len(urls)}
    options = [str(word) for option in how.items() for word in option]
    where = ("--url", ",".join(urls), "--out", folder, "--sampler", SAMPLER)
    end(start("bulk", *where, *options, **variables))
