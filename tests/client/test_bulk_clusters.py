"""Shards made by a real Ray and a real Dask, a worker and a server of which are killed on the way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import distributed
import psutil
import pytest

from benchmarks.bulk.command import kill
from brats_ldm_client import Client, WeightsChanged
from brats_ldm_client._cli import main
from brats_ldm_client.bulk import (
    Engine,
    make_all,
    make_all_with,
    model_of,
    on_dask,
    on_ray,
    plan_for,
    ray_engine,
)
from server.process import TritonServer
from support.bulk import arguments, bulk, tree
from support.fake_triton import Served


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray on this machine; `RAY_ADDRESS` is its address, for other processes too."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        _start_ray()
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def local_dask() -> Iterator[distributed.Client]:
    """A Dask with two workers on this machine."""
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        yield client


def _start_ray() -> None:
    """On a machine that is busy, a start of Ray sometimes fails: it gives itself 30 s, and no more can be asked for."""
    import ray

    for last in (False, False, True):
        try:
            ray_engine._connect(ray)
        except Exception:
            ray.shutdown()
            if last:
                raise
        else:
            return


@pytest.fixture(params=["ray", "dask"])
def cluster(
    request: pytest.FixtureRequest, local_ray: None, local_dask: distributed.Client
) -> tuple[Engine, Callable[[], int]]:
    """An engine with two workers, and a function that finds the process of one that works."""
    if request.param == "ray":
        return on_ray(2), a_ray_worker
    return on_dask(local_dask, 2), lambda: next(iter(local_dask.run(os.getpid).values()))


def a_ray_worker() -> int:
    """A process that makes a shard now."""
    while True:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.cmdline()[:1] == ["ray::_Worker.make"]:
                    return child.pid


@pytest.mark.slow
def test_an_error_of_a_worker_comes_back_as_it_was(
    cluster: tuple[Engine, object], served: Served, tmp_path: Path
) -> None:
    """The server has other weights than the plan."""
    with Client(served.url) as client:
        plan = plan_for(model_of(client), 10, "png", shard_size=2)
    other = replace(plan, model_digest="sha256:" + "0" * 64)
    with pytest.raises(WeightsChanged, match=r"the image of seed [02] was made with the weights sha256:abab"):
        make_all_with(cluster[0], other, tmp_path / "out", {"url": served.url})


class Killer:
    """A report that kills a worker and then a server, when some shards are there."""

    def __init__(self, worker: Callable[[], int], server: TritonServer) -> None:
        self._worker, self._server, self._shards, self.killed = worker, server, 0, False

    def there(self, images: int, shards: int) -> None: ...
    def image(self, made: object) -> None: ...

    def shard(self, index: int, images: int) -> None:
        self._shards += 1
        if self._shards == 2:
            os.kill(self._worker(), signal.SIGKILL)
        if self._shards == 4:
            kill(self._server)
            self.killed = True


@pytest.mark.slow
def test_a_worker_and_a_server_are_killed(
    cluster: tuple[Engine, Callable[[], int]], small_repository: Path, tmp_path: Path
) -> None:
    with TritonServer(small_repository) as doomed, TritonServer(small_repository) as survivor:
        with Client(survivor.grpc_url) as client:
            plan = plan_for(model_of(client), 60, "webdataset,png", shard_size=5, steps=10)
            make_all(client, plan, tmp_path / "calm")
        connection = {"url": [doomed.grpc_url, survivor.grpc_url], "concurrency": 2, "retry_seconds": 120}
        engine, worker = cluster
        killer = Killer(worker, doomed)
        make_all_with(engine, plan, tmp_path / "out", connection, killer)
    assert killer.killed
    assert tree(tmp_path / "out") == tree(tmp_path / "calm")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "dask"])
@pytest.mark.usefixtures("local_ray")  # $RAY_ADDRESS
def test_the_command_with_an_engine(
    engine: str, local_dask: distributed.Client, small_server: TritonServer, tmp_path: Path
) -> None:
    """In a process of its own, as a user starts it."""
    size = ("--count", 10, "--shard-size", 4, "--steps", 2)
    assert main(arguments(tmp_path / "calm", small_server.grpc_url, *size)) == 0
    command = bulk(tmp_path / "out", small_server.grpc_url, *size, "--engine", engine, "--workers", 2)
    env = os.environ | {"DASK_SCHEDULER_ADDRESS": local_dask.scheduler.address}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 synthetic slices (seeds 0 to 9) in "), done.stdout
    assert re.search(r"10 of 10 images, 3 of 3 shards, [\d.]+ images/s, 0:00:00 left\n", done.stderr), done.stderr
    assert tree(tmp_path / "out") == tree(tmp_path / "calm")
