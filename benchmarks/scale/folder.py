"""A simulated schedule, played on a real folder by processes. Many are killed on the way, and nothing may be lost."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.actors import Attempt
from benchmarks.scale.fleet import Fleet, simulate
from brats_ldm_client import Client
from brats_ldm_client._types import F32
from brats_ldm_client.bulk import Plan, check_hashes, make_all, make_shard, model_of, plan_for
from brats_ldm_client.bulk.shard import file_hash, files_of
from brats_ldm_client.files import TEMPORARY
from brats_ldm_client.testing import FakeTransport

FORMATS = "webdataset,png"
"""A file and a folder a shard."""
SIDE = 8  # pixels
TOGETHER = 8  # processes at a time
TWIN_EVERY = 7  # attempts: then two processes make one shard at once
DRIVER_EVERY = 50  # attempts: then a whole run begins, and is killed


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    workers: int
    images: int
    shard_size: int


FULL = Amount(workers=200, images=6000, shard_size=12)
QUICK = Amount(workers=20, images=600, shard_size=6)


def measure(work: Path, amount: Amount) -> dict[str, Any]:
    """What was done to the folder, counted, and what differs from one that nothing disturbed."""
    calm, played = work / "calm", work / "played"
    for folder in (calm, played):
        shutil.rmtree(folder, ignore_errors=True)
    with Client(transport=FakeTransport(tiny_image)) as client:
        plan = plan_for(model_of(client), amount.images, FORMATS, shard_size=amount.shard_size)
        make_all(client, plan, calm)
        counts = _play(plan, played, _schedule(amount))
        counts["leftovers"] = sum(1 for _ in played.glob(TEMPORARY))
        counts["missing"] = make_all(client, plan, played).images
    theirs = content(calm)
    facts = {**vars(amount), "formats": FORMATS, "files": len(theirs), "faults": check_hashes(played).faults}
    return {**facts, "counts": counts, "different": different(content(played), theirs)}


def tiny_image(seed: int) -> F32:
    """Noise [8, 8]: what is tried here does not depend on the size of images."""
    return np.random.default_rng(seed).random((SIDE, SIDE), np.float32)


def _schedule(amount: Amount) -> list[Attempt]:
    """Attempts of a simulated fleet in the order in which they begin. About a third die."""
    shard_s = float(amount.shard_size)
    fleet = Fleet(
        servers=amount.workers, workers=amount.workers, images=amount.images, shard_size=amount.shard_size,
        image_s=1.0, worker_mtbf_s=2 * shard_s, worker_restart_s=shard_s / 4, rows=1, concurrency=1,
    )  # fmt: skip
    return sorted(simulate(fleet, seed=1).attempts, key=lambda attempt: attempt.began)


def _play(plan: Plan, folder: Path, attempts: list[Attempt]) -> dict[str, int]:
    """Every attempt by a process of its own, as many at a time as may be; the dead are killed after as many images."""
    processes, twins, drivers = _Processes(), 0, 0
    for i, attempt in enumerate(attempts):
        dies_after = None if attempt.whole else attempt.made
        processes.start(_make_one, plan, folder, dies_after, attempt.shard)
        if i % TWIN_EVERY == 0:
            processes.start(_make_one, plan, folder, None, attempt.shard)
            twins += 1
        if i % DRIVER_EVERY == DRIVER_EVERY // 2:
            processes.start(_make_rest, plan, folder, attempt.made)
            drivers += 1
    killed = processes.end()
    return {"attempts": len(attempts), "twins": twins, "drivers": drivers, "killed": killed}


class _Processes:
    """A few at a time. One that ends in another way than by success or SIGKILL is an error."""

    def __init__(self) -> None:
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "webdataset"])  # which takes a second to import
        self._running: list[ForkServerProcess] = []
        self._killed = 0

    def start(self, target: Callable[..., None], *arguments: object) -> None:
        while len(self._running) >= TOGETHER:
            connection.wait([process.sentinel for process in self._running])
            self._collect()
        process = self._context.Process(target=target, args=arguments, daemon=True)
        process.start()
        self._running.append(process)

    def end(self) -> int:
        """Wait for all; returns how many were killed."""
        for process in self._running:
            process.join()
        self._collect()
        return self._killed

    def _collect(self) -> None:
        ended = [process for process in self._running if not process.is_alive()]
        self._running = [process for process in self._running if process not in ended]
        for process in ended:
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"a process of the folder ended with {process.exitcode}: its words are above")
            self._killed += process.exitcode != 0


def _make_one(plan: Plan, folder: Path, dies_after: int | None, shard: int) -> None:
    with _mortal_client(dies_after) as client:
        make_shard(client, plan, folder, shard)


def _make_rest(plan: Plan, folder: Path, dies_after: int) -> None:
    with _mortal_client(dies_after) as client:
        make_all(client, plan, folder)


def _mortal_client(dies_after: int | None) -> Client:
    """Its process is killed when it asks for one image more."""
    asked = 0

    def image(seed: int) -> F32:
        nonlocal asked
        if asked == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        asked += 1
        return tiny_image(seed)

    return Client(transport=FakeTransport(image), rows_per_request=1, concurrency=1)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path in the folder."""
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files_of(folder)}


def different(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The files that are in one folder only, or differ."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
