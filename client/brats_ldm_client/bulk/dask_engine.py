"""Shards made by the workers of Dask, and of what Dask starts: jobs of SLURM or PBS, pods, threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from .._errors import EngineError, InvalidRequest
from .._extras import need
from .engines import Engine, check_workers

if TYPE_CHECKING:
    from distributed import Client as DaskClient
    from distributed import Future


def on_dask(client: DaskClient | None = None, workers: int = 4) -> Engine:
    """An engine for `make_all_with`: the workers of a Dask cluster, with so many shards at a time.

    The shard of a worker that dies is given to another one. Dask gives a shard up at which four workers have died
    (its setting distributed.scheduler.allowed-failures).

    Args:
        client: Of the cluster; without it, the cluster is that of $DASK_SCHEDULER_ADDRESS.
        workers: How many shards are made at a time.

    Raises:
        MissingPackage: the package `distributed` is not installed.
        InvalidRequest: fewer than one worker. The engine raises it without a client and an address, and EngineError if
            the scheduler cannot be reached, or is lost.
    """
    distributed = need("distributed")
    check_workers(workers)

    def run(job: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        try:
            with contextlib.nullcontext(client) if client else _connected(distributed) as dask:
                yield from _made(dask, distributed.as_completed, workers, job, shards)
        except distributed.comm.CommClosedError as error:
            raise EngineError("the connection to the scheduler of Dask is lost") from error

    return run


def _made(
    client: DaskClient, as_completed: Any, workers: int, job: Callable[[int], int], shards: Sequence[int]
) -> Iterator[int]:
    left, name = iter(shards), token_hex(4)

    def submitted(count: int) -> list[Future[int]]:
        return [client.submit(job, index, key=f"shard-{index}-{name}") for index in islice(left, count)]

    # As many tasks as shards at a time: a million of them would weigh on the scheduler.
    running = as_completed(submitted(workers), loop=client.loop)
    try:
        for future in running:
            yield future.result()
            running.update(submitted(1))
    finally:
        client.cancel([*running.futures])  # type: ignore[no-untyped-call]


def _connected(distributed: Any) -> DaskClient:
    """A client of the cluster of $DASK_SCHEDULER_ADDRESS, which Dask itself reads."""
    address = need("dask").config.get("scheduler-address", None)
    if not address:  # Dask would start one: all users of this machine could give it programs to run as this user
        raise InvalidRequest("DASK_SCHEDULER_ADDRESS is not set: set it to the address of a Dask scheduler")
    try:
        connected: DaskClient = distributed.Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"no Dask scheduler answers at {address}: {error}; check DASK_SCHEDULER_ADDRESS") from error
    return connected
