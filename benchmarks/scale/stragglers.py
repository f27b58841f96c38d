"""What slow servers, crashes and deaths cost: every policy through the same mishaps, and against the size of shards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from typing import Any

from benchmarks import ROOT
from benchmarks.harness.command import read_record
from benchmarks.harness.timing import spread
from benchmarks.scale.fleet import FINDING, SHARING, Fleet, simulate
from brats_ldm_client._calibrate import Calibration

STEPS = 20
SLOW = {"slow_share": 0.05, "slow_speed": 1 / 3}
STALL = {"stall_s": 180.0}
CRASHES = {"server_mtbf_s": 3600.0, "server_repair_s": 60.0}
DEATHS = {"worker_mtbf_s": 3600.0, "worker_restart_s": 60.0}
MISHAPS: dict[str, dict[str, Any]] = {
    "nothing happens": {},
    "5 % of servers at a third of the speed": SLOW,
    "one server frozen for 3 minutes": STALL,
    "servers crash once an hour, back in a minute": CRASHES,
    "workers die once an hour, back in a minute": DEATHS,
    "all of it": {**SLOW, **STALL, **CRASHES, **DEATHS},
}
"""What befalls the fleet. Rates are per server and per worker."""


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    servers: int
    images: int
    shard_size: int
    shard_sizes: tuple[int, ...]
    seeds: int


FULL = Amount(servers=200, images=200_000, shard_size=100, shard_sizes=(8, 16, 32, 64, 125, 250, 500, 1000), seeds=10)
QUICK = Amount(servers=10, images=2_000, shard_size=50, shard_sizes=(20, 200), seeds=2)


def measure(amount: Amount) -> dict[str, Any]:
    """The undisturbed `fleet`; figures of each policy by mishap, and by size of shards with all mishaps."""
    fleet = Fleet(
        servers=amount.servers, workers=amount.servers, images=amount.images, shard_size=amount.shard_size,
        image_s=seconds_of_an_image(), shard_s=2.0,
    )  # fmt: skip
    names = ("servers", "workers", "images", "shard_size", "image_s", "shard_s", "rows", "concurrency", "room_rows")
    facts = {**{name: getattr(fleet, name) for name in names}, "steps": STEPS, "seeds": amount.seeds}
    result: dict[str, Any] = {"fleet": facts, "mishaps": {}, "shard_sizes": {}}
    # No fork server: that of the section `folder` is begun with other modules.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for name, mishap in MISHAPS.items():
            print(f"  {name}", flush=True)
            seeds = range(amount.seeds if mishap else 1)
            result["mishaps"][name] = _by_policy(pool, replace(fleet, **mishap), seeds)
        for size in amount.shard_sizes:
            print(f"  shards of {size}", flush=True)
            disturbed = replace(fleet, shard_size=size, **MISHAPS["all of it"])
            result["shard_sizes"][str(size)] = _by_policy(pool, disturbed, range(max(1, amount.seeds // 2)))
    return result


def seconds_of_an_image() -> float:
    """Of the demo weights on the machine of benchmarks/cost.json, by the model that was fitted there."""
    model = Calibration(**read_record(ROOT / "benchmarks" / "cost.json")["calibration"]["model"])
    rows = 64  # in flight, as a client of the defaults asks for
    return model.predict(rows, STEPS, rows) / rows


def _by_policy(pool: ProcessPoolExecutor, fleet: Fleet, seeds: Iterable[int]) -> dict[str, Any]:
    policies = {f"{sharing}, {finding}": (sharing, finding) for sharing, finding in product(SHARING, FINDING)}
    running = {
        name: [pool.submit(_figures, replace(fleet, sharing=sharing, finding=finding), seed) for seed in seeds]
        for name, (sharing, finding) in policies.items()
    }
    return {name: _spreads([run.result() for run in runs]) for name, runs in running.items()}


def _figures(fleet: Fleet, seed: int) -> dict[str, float]:
    return simulate(fleet, seed).figures()


def _spreads(figures: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([run[name] for run in figures]) for name in figures[0]}
