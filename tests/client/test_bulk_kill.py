"""SIGKILL at random moments of a run in bulk: the finished folder is that of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from brats_ldm_client import Client
from brats_ldm_client._cli import main
from server.process import TritonServer
from support.bulk import arguments, bulk, tree
from support.faulty_networks import write_faulty

pytestmark = pytest.mark.slow
FORMATS = "webdataset,hdf5,zarr,png,dicom"
OPTIONS = ("--count", 22, "--shard-size", 5, "--steps", 2, "--seed-base", 40, "--format", FORMATS)
LOAD = ("--rows-per-request", 2, "--concurrency", 3)
KILLS = 5


def files(folder: Path) -> int:
    """How many, whole or not."""
    return sum(len(names) for _, _, names in os.walk(folder))


def killed(command: list[str], out: Path, at: int, pause: float) -> bool:
    """Start a run and kill it `pause` seconds after the folder has `at` files; false if it was done before."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while files(out) < at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode != 0


def test_a_run_that_is_killed_again_and_again(small_server: TritonServer, tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    print(f"moments drawn with the seed {seed}")
    draw = random.Random(seed)
    assert main(arguments(tmp_path / "calm", small_server.grpc_url, *OPTIONS)) == 0
    calm, out = tree(tmp_path / "calm"), tmp_path / "out"
    command = bulk(out, small_server.grpc_url, *OPTIONS, *LOAD)
    # Some at any number of files up to the last, some while the last ones are written.
    moments = [draw.randrange(len(calm)) for _ in range(KILLS - 2)] + [len(calm) - 3, len(calm) - 1]
    kills = sum(killed(command, out, at, draw.random() * 0.05) for at in sorted(moments))
    assert kills >= KILLS - 2
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    assert tree(out) == calm


def test_a_busy_server_slows_a_run_down(tmp_path: Path) -> None:
    """Most requests are refused, for there is room for two of sixteen: the run takes its time, and all images come."""
    repository = write_faulty(tmp_path / "repository", max_rows_in_flight=2, max_rows_waiting=2)
    load = ("--rows-per-request", 2, "--concurrency", 8)
    with TritonServer(repository, profile="cpu") as server:
        options = ("--count", 40, "--shard-size", 16, "--steps", 3, "--format", "hdf5")
        assert main(arguments(tmp_path / "out", server.grpc_url, *options, *load)) == 0
        with Client(server.grpc_url, rows_per_request=2, concurrency=1) as client:
            calm = client.generate(range(40), steps=3).images
    import h5py

    shards = [h5py.File(path)["image"][:] for path in sorted((tmp_path / "out").glob("*.h5"))]
    assert [image.tobytes() for shard in shards for image in shard] == [image.tobytes() for image in calm]
