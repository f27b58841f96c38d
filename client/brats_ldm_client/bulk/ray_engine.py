"""Shards made by actors of Ray."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._errors import EngineError, InvalidRequest
from .._extras import need
from .engines import Engine, check_workers

# Images do not pass through Ray's shared memory: 80 MB, about the least that it takes.
_LOCAL = {"include_dashboard": False, "object_store_memory": 80_000_000}
_ACTOR = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "SPREAD"}


class _Worker:
    """An actor: makes one shard at a time."""

    def __init__(self, job: Callable[[int], int]) -> None:
        self._job = job

    def make(self, index: int) -> int:
        return self._job(index)


def on_ray(workers: int = 4, **options: Any) -> Engine:
    """An engine for `make_all_with`: so many actors of Ray, each of which makes one shard at a time.

    An actor that dies is started again, on any machine of the cluster, and its shard is made anew. Unless `ray.init`
    has been called, the cluster is that of $RAY_ADDRESS.

    Args:
        workers: How many actors.
        options: Of an actor, for Ray: `num_cpus=1`, `resources={"client": 1}` and so on.

    Raises:
        MissingPackage: Ray is not installed.
        InvalidRequest: fewer than one worker; also when the engine runs and RAY_ADDRESS is not set.
        EngineError: when the engine runs and nothing answers there.
    """
    ray = need("ray")
    check_workers(workers)

    def run(job: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        with _connected(ray):
            actor = ray.remote(**{**_ACTOR, **options})(_Worker)
            actors = [actor.remote(job) for _ in range(min(workers, len(shards)))]
            try:
                yield from ray.util.ActorPool(actors).map_unordered(lambda one, index: one.make.remote(index), shards)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # what the shard's function raised

    return run


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connected to Ray in the block, and afterwards as before. The actors of a connection end with it."""
    if ray.is_initialized():
        yield
        return
    _connect(ray)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any) -> None:
    """To the cluster of $RAY_ADDRESS, which Ray itself reads."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # Ray would start one that listens on all addresses of this machine
        raise InvalidRequest("RAY_ADDRESS is not set: set it to the address of a Ray cluster, or to `local`")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started reports to its makers
    _check_reachable(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Its log files say which workers died. What matters here comes as an error.
        ray.init(logging_level="ERROR", log_to_driver=False, **(_LOCAL if address == "local" else {}))
    except (ConnectionError, ValueError) as error:
        raise EngineError(f"no Ray answers at {address}: {str(error).split('. ')[0]}; check RAY_ADDRESS") from error
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray takes it, and then SIGTERM aborts with a dump


def _check_reachable(address: str) -> None:
    """Raises EngineError; Ray itself would try for minutes."""
    try:
        if parts := re.fullmatch(r"(?:ray://)?([^:/]+|\[.+\]):(\d+)", address):  # not auto or local
            socket.create_connection((parts[1].strip("[]"), int(parts[2])), timeout=10).close()
    except OSError as error:
        raise EngineError(f"no Ray answers at {address}: {error.strerror or error}; check RAY_ADDRESS") from error
