"""Shards made by the workers of Dask, and of what Dask starts: jobs of SLURM or PBS, pods, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING

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
        client: Of the cluster. Without it, the cluster is that of $DASK_SCHEDULER_ADDRESS; without that, Dask is
            started on this machine alone, with so many processes.
        workers: How many shards are made at a time.

    Raises:
        MissingPackage: the package `distributed` is not installed.
        InvalidRequest: fewer than one worker.
    """
    distributed = need("distributed")
    check_workers(workers)

    def run(job: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        if client is None:
            address = need("dask").config.get("scheduler-address", None)
            local = {} if address else {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
            with distributed.Client(address, **local, set_as_default=False) as own:
                yield from on_dask(own, workers)(job, shards)
            return
        left, name = iter(shards), token_hex(4)

        def submitted(count: int) -> list[Future[int]]:
            return [client.submit(job, index, key=f"shard-{index}-{name}") for index in islice(left, count)]

        # As many tasks as shards at a time: a million of them would weigh on the scheduler.
        running = distributed.as_completed(submitted(workers), loop=client.loop)
        try:
            for future in running:
                yield future.result()
                running.update(submitted(1))
        finally:
            client.cancel([*running.futures])  # type: ignore[no-untyped-call]

    return run
