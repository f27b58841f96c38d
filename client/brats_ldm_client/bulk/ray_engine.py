"""Shards made by actors of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._errors import InvalidRequest
from .._extras import need
from .engines import Engine, check_workers

# Images do not pass through Ray's shared memory: 80 MB, about the least that it takes.
_LOCAL = {"include_dashboard": False, "object_store_memory": 80_000_000}


class _Worker:
    """An actor: makes one shard at a time."""

    def __init__(self, job: Callable[[int], int]) -> None:
        self._job = job

    def make(self, index: int) -> int:
        return self._job(index)


def on_ray(workers: int = 4, **options: Any) -> Engine:
    """An engine for `make_all_with`: so many actors of Ray, each of which makes one shard at a time.

    An actor that dies is started again, on any machine of the cluster, and its shard is made anew. The cluster is that
    of $RAY_ADDRESS, unless `ray.init` has been called before.

    Args:
        workers: How many actors.
        options: What an actor needs, for Ray: `num_cpus=1`, `resources={"client": 1}` and so on.

    Raises:
        MissingPackage: Ray is not installed.
        InvalidRequest: fewer than one worker. The engine raises it if RAY_ADDRESS is not set.
    """
    ray = need("ray")
    check_workers(workers)

    def run(job: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        if not ray.is_initialized():
            _connect(ray)
        actor = ray.remote(**{"max_restarts": -1, "max_task_retries": -1, **options})(_Worker)
        actors = [actor.remote(job) for _ in range(min(workers, len(shards)))]
        try:
            yield from (ray.util.ActorPool(actors).map_unordered(lambda one, index: one.make.remote(index), shards))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the shard's function raised
        finally:
            for one in actors:
                ray.kill(one)

    return run


def _connect(ray: Any) -> None:
    """To the cluster of $RAY_ADDRESS, which Ray itself reads."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # Ray would start one that listens on all addresses of this machine
        raise InvalidRequest(
            "RAY_ADDRESS is not set: set it to the address of a Ray cluster, or to `local` to start Ray on this "
            "machine, where it listens on all addresses"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started reports to its makers
    ray.init(logging_level="WARNING", **(_LOCAL if address == "local" else {}))
