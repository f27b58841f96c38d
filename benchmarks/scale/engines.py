"""Runs by Ray and by Dask that lose a worker and one of two servers: what differs from the folder of a calm run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bulk.command import POLL_SECONDS, await_shards, end, kill, start
from benchmarks.scale.folder import content, different
from server.process import TritonServer

SAMPLER = "dpmpp_2m"
WORKERS = 3
# What the processes of the workers are called: Ray names its actors, and Dask starts its workers by multiprocessing.
PROCESSES = {"ray": "ray::_Worker", "dask": "spawn_main"}


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    images: int
    steps: int
    shard_size: int
    engines: tuple[str, ...] = ("ray", "dask")


FULL = Amount(images=2000, steps=5, shard_size=50)
QUICK = Amount(images=40, steps=2, shard_size=4, engines=("dask",))


def measure(repository: Path, profile: str, work: Path, amount: Amount) -> Iterator[tuple[str, Any]]:
    """What happened in the run of each engine, and whether its folder has the bytes of an undisturbed run."""
    with TritonServer(repository, profile) as server:
        server.probe()
        calm = _folder(work, "calm")
        end(_start(server.grpc_url, calm, amount))
        yield "calm", {**vars(amount), "sampler": SAMPLER}
    files = content(calm)
    for engine in amount.engines:
        yield engine, _disturbed(repository, profile, _folder(work, engine), engine, amount, files)


def _disturbed(
    repository: Path, profile: str, folder: Path, engine: str, amount: Amount, calm: dict[str, str]
) -> dict[str, Any]:
    shards = amount.images // amount.shard_size
    with (
        TritonServer(repository, profile) as doomed,
        TritonServer(repository, profile) as survivor,
        cluster(engine, WORKERS) as variables,
    ):
        for server in (doomed, survivor):
            server.probe()
        urls = f"{doomed.grpc_url},{survivor.grpc_url}"
        more = ("--engine", engine, "--workers", str(WORKERS), "--concurrency", str(3 * WORKERS))
        process = _start(urls, folder, amount, *more, **variables)
        at = {"worker": await_shards(folder, process, shards // 4)}
        _kill_a_worker(PROCESSES[engine])
        at["server"] = await_shards(folder, process, shards // 2)
        kill(doomed)
        end(process)
    if max(at.values()) >= shards:
        raise RuntimeError(f"{at} of {shards} shards: something was killed when there was no more to do")
    made = content(folder)
    return {
        "workers": WORKERS,
        "shards": shards,
        "shards_when_killed": at,
        "files": len(made),
        "files_that_differ": len(different(made, calm)),
    }


@contextmanager
def cluster(engine: str, workers: int) -> Iterator[dict[str, str]]:
    """The variables for a command with `engine`, whose cluster is on this machine; nothing for no engine."""
    if engine == "dask":
        import distributed

        how = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        with distributed.Client(**how) as client:
            yield {"DASK_SCHEDULER_ADDRESS": client.scheduler.address}
    else:
        yield {"RAY_ADDRESS": "local"} if engine else {}


def _start(urls: str, folder: Path, amount: Amount, *more: str, **variables: str) -> Any:
    how = ("--count", amount.images, "--shard-size", amount.shard_size, "--steps", amount.steps, "--sampler", SAMPLER)
    return start("bulk", "--url", urls, "--out", folder, *map(str, how), *more, **variables)


def _folder(work: Path, name: str) -> Path:
    folder = work / "engines" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _kill_a_worker(name: str) -> None:
    """Kill one of the processes below this one that has `name` in its command line."""
    while True:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if name in " ".join(child.cmdline()):
                    child.kill()
                    return
        time.sleep(POLL_SECONDS)
