"""A fleet in simulated time: servers that crash, stall or are slow, and workers that make shards and die.

Each worker asks through the client's own `Schedule`: requests in flight, order, retries and pauses are the real ones.
A server works on one request after the other, as a CPU does, and refuses what does not fit into its queue. Times are in
seconds. SimPy keeps the clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import simpy

from benchmarks.scale.actors import NEVER, Attempt, Events, Server, Worker

Sharing = Literal["static", "dynamic"]
Finding = Literal["own server", "in turn", "least busy"]
SHARING: tuple[Sharing, ...] = ("static", "dynamic")
FINDING: tuple[Finding, ...] = ("own server", "in turn", "least busy")


@dataclass(frozen=True)
class Fleet:
    """Servers, workers, and what befalls them: by default nothing, and all servers are equally fast.

    Each worker writes one shard at a time. sharing: "static" gives each a contiguous range of shards at the start,
    "dynamic" the next missing one when it is free. finding: "own server" is one for each worker; "in turn" is what gRPC
    does with several urls; "least busy" is a balancer that knows how many requests each server has.
    """

    servers: int = 200
    workers: int = 200
    images: int = 400_000
    shard_size: int = 1000
    sharing: Sharing = "dynamic"
    finding: Finding = "own server"
    image_s: float = 0.4
    """Seconds of an image on a server of full speed."""
    shard_s: float = 0.0
    """Seconds of a worker from one shard to its next: a process starts, opens the folder, writes to the disk."""
    slow_share: float = 0.0
    slow_speed: float = 1.0
    """Of those slow servers: 0.5 is half as fast."""
    server_mtbf_s: float = NEVER
    """Mean time between crashes of a server; what it worked on fails at once."""
    server_repair_s: float = 300.0
    worker_mtbf_s: float = NEVER
    """Mean time between deaths of a worker; its unfinished shard is lost."""
    worker_restart_s: float = 60.0
    stall_s: float = 0.0
    """One server freezes for so long, a third of the way through the run."""
    rows: int = 8
    concurrency: int = 8
    retry_s: float = 600.0
    room_rows: int = 320
    """Rows that a server takes: 64 in flight and 256 that wait."""

    @property
    def shards(self) -> int:
        """How many; the last may have fewer images."""
        return -(-self.images // self.shard_size)

    def shard(self, index: int) -> range:
        """The seeds of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.images))

    @property
    def slow(self) -> int:
        """How many servers are slow."""
        return round(self.slow_share * self.servers)

    @property
    def ideal_s(self) -> float:
        """Seconds if all servers always worked, each at its speed."""
        return self.images * self.image_s / (self.servers - self.slow * (1 - self.slow_speed))


@dataclass
class Outcome:
    """What became of a run."""

    makespan_s: float
    ideal_s: float
    images: int
    computed: int
    """Images that servers finished, those for dead workers among them."""
    busy_s: float
    """Seconds that servers worked, summed."""
    servers: int
    tail_s: float
    """From the first worker that found nothing to do until the end."""
    crashes: int
    deaths: int
    attempts: list[Attempt] = field(repr=False)

    def figures(self) -> dict[str, float]:
        """`stretch`: makespan over ideal time. `twice` is a share of images, `tail` and `idle` of the makespan."""
        return {
            "stretch": self.makespan_s / self.ideal_s,
            "twice": self.computed / self.images - 1,
            "tail": self.tail_s / self.makespan_s,
            "idle": 1 - self.busy_s / (self.servers * self.makespan_s),
            "crashes": self.crashes,
            "deaths": self.deaths,
        }


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """One run to its end. `seed` draws which servers are slow, and when what happens.

    Raises:
        ValueError: a server of its own for each worker needs as many servers as workers.
    """
    if fleet.finding == "own server" and fleet.servers < fleet.workers:
        raise ValueError(f"{fleet.workers} workers with a server each need as many servers, not {fleet.servers}")
    before = random.getstate()
    random.seed(seed)  # the client's pauses are drawn from it
    try:
        return Run(fleet, random.Random(seed)).outcome()
    finally:
        random.setstate(before)


class Run:
    """What servers and workers share."""

    def __init__(self, fleet: Fleet, draw: random.Random) -> None:
        self.fleet, self.draw, self.env = fleet, draw, simpy.Environment()
        self.requests = np.zeros(fleet.servers)  # that each server has; infinite while it is down
        slow = set(draw.sample(range(fleet.servers), fleet.slow))
        self.servers = [Server(self, i, fleet.slow_speed if i in slow else 1.0) for i in range(fleet.servers)]
        self.attempts: list[Attempt] = []
        self._queues = self._shared_out()
        self._returned, self._end = self.env.event(), self.env.event()
        self._whole, self.deaths, self._first_idle = 0, 0, NEVER
        self.workers = [Worker(self, i) for i in range(fleet.workers)]
        for server in self.servers:
            self._befall(fleet.server_mtbf_s, partial(server.disturb, None))
        for worker in self.workers:
            self._befall(fleet.worker_mtbf_s, worker.kill)
        if fleet.stall_s:
            self.env.process(self._stall(draw.choice(self.servers)))

    def _shared_out(self) -> list[deque[int]]:
        """The shards of each worker, or of all."""
        fleet = self.fleet
        if fleet.sharing == "dynamic":
            return [deque(range(fleet.shards))]
        ends = [fleet.shards * i // fleet.workers for i in range(fleet.workers + 1)]
        return [deque(range(first, last)) for first, last in pairwise(ends)]

    def _befall(self, mtbf_s: float, event: Callable[[], object]) -> None:
        def repeatedly() -> Events:
            while True:
                yield self.env.timeout(self.draw.expovariate(1 / mtbf_s))
                event()

        if mtbf_s < NEVER:
            self.env.process(repeatedly())

    def _stall(self, server: Server) -> Events:
        yield self.env.timeout(self.fleet.ideal_s / 3)
        server.disturb(self.fleet.stall_s)

    def shards_of(self, worker: int) -> deque[int]:
        return self._queues[worker if self.fleet.sharing == "static" else 0]

    def idle(self) -> simpy.Event:
        """A worker has nothing to do; the event tells when a shard has come back."""
        self._first_idle = min(self._first_idle, self.env.now)
        return self._returned

    def whole(self) -> None:
        self._whole += 1
        if self._whole == self.fleet.shards:
            self._end.succeed()

    def lost(self, attempt: Attempt) -> None:
        self.deaths += 1
        self.shards_of(attempt.worker).appendleft(attempt.shard)
        self._returned.succeed()
        self._returned = self.env.event()

    def outcome(self) -> Outcome:
        self.env.run(until=self._end)
        now, servers = self.env.now, self.servers
        return Outcome(
            makespan_s=now, ideal_s=self.fleet.ideal_s, images=self.fleet.images,
            computed=sum(server.computed for server in servers), busy_s=sum(server.busy_s for server in servers),
            servers=len(servers), tail_s=max(0.0, now - self._first_idle),
            crashes=sum(server.crashes for server in servers), deaths=self.deaths, attempts=self.attempts,
        )  # fmt: skip
