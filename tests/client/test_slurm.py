"""deploy/slurm/bulk.sbatch and dask-jobqueue on a real SLURM: folders have the bytes that one process makes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brats_ldm_client._cli import main
from server.process import TritonServer
from support.bulk import arguments, tree
from support.common import ROOT
from support.faulty_networks import order, write_faulty
from support.slurm import PATIENCE, Slurm

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "deploy" / "slurm" / "bulk.sbatch"
OPTIONS = ("--count", 24, "--shard-size", 2, "--steps", 2, "--format", "webdataset,png")
ONE_BY_ONE = ("--rows-per-request", 1, "--concurrency", 1)
SMALL = "--cpus-per-task=1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        cluster.env |= {"VENV": str(Path(sys.executable).parents[1]), "SHARDS_PER_TASK": "3"}
        yield cluster


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty(tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def calm(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The folder that one process makes."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert main(arguments(out, server.grpc_url, *OPTIONS)) == 0
    return tree(out)


def whole(out: Path) -> set[int]:
    """The shards that are there."""
    return {int(mark.stem.removeprefix("shard-")) for mark in out.glob("shard-*.json")}


def commands_of_the_page(job: str, out: Path) -> list[list[str]]:
    """The words after `sbatch` of the first two commands in docs/slurm.md, in small."""
    small = {
        "--count 1000000 --preset fast --format webdataset": " ".join(map(str, OPTIONS)),
        "--out dataset": f"--out {out}",
    }
    small |= {"0-99": "0-1", "afterany:17": f"afterany:{job}", "deploy/slurm/bulk.sbatch": str(SCRIPT)}
    text = (ROOT / "docs" / "slurm.md").read_text()
    for shown, instead in small.items():
        assert shown in text
        text = text.replace(shown, instead)
    return [shlex.split(line) for line in re.findall(r"^\$ sbatch (.+)", text, re.MULTILINE)]


def finish(cluster: Slurm, out: Path, after: str, **env: str) -> dict[str, bytes]:
    """The folder after the last job, which has waited for another one."""
    last = cluster.submit(SMALL, f"--dependency=afterany:{after}", SCRIPT, *OPTIONS, "--out", out, **env)
    assert cluster.wait(last) == {"N/A": "COMPLETED"}, cluster.story("the last job")
    return tree(out)


def test_a_task_and_a_server_are_killed(
    cluster: Slurm, repository: Path, server: TritonServer, calm: dict[str, bytes], tmp_path: Path
) -> None:
    out, block = tmp_path / "out", {3, 4, 5}
    words = (SCRIPT, *OPTIONS, *ONE_BY_ONE, "--out", out)
    order(repository, "unet", seconds=0.5)
    with TritonServer(repository) as other:
        env = {"BRATS_LDM_URL": f"{server.grpc_url},{other.grpc_url}"}
        array = cluster.submit("--array=0-4", SMALL, *words, **env)
        cluster.wait_until(lambda: bool(whole(out) & block), "task 1 has made nothing")
        for process in cluster.processes(SLURM_ARRAY_JOB_ID=array, SLURM_ARRAY_TASK_ID="1"):
            process.kill()
        os.kill(other.pid, signal.SIGKILL)
        order(repository, "unet")
        ended = dict.fromkeys("023", "COMPLETED") | dict.fromkeys("14", "FAILED")
        assert cluster.wait(array) == ended, cluster.story("the array")
        assert "--shards 12..14: there are 12 shards" in cluster.story("task 4")
        assert len(whole(out) & block) < len(block)
        assert whole(out) | block == {*range(12)}
        again = cluster.submit("--array=1", SMALL, *words, **env)
        assert finish(cluster, out, again, **env) == calm
    assert cluster.states(again) == {"1": "COMPLETED"}


def test_tasks_with_servers_of_their_own(
    cluster: Slurm, repository: Path, calm: dict[str, bytes], tmp_path: Path
) -> None:
    """One is requeued while it works: it begins again, and its server is another."""
    out, env = tmp_path / "out", {"REPOSITORY": str(repository), "SHARDS_PER_TASK": "6"}
    order(repository, "unet", seconds=0.5)
    (words, _) = commands_of_the_page("", out)
    array = cluster.submit(SMALL, *words, *ONE_BY_ONE, **env)
    cluster.wait_until(lambda: 0 in whole(out), "task 0 has made nothing")
    cluster.command("scontrol", "requeue", f"{array}_0")
    order(repository, "unet")
    assert cluster.wait(array) == dict.fromkeys("01", "COMPLETED"), cluster.story("the array")
    assert len(whole(out)) == 12
    (_, words) = commands_of_the_page(array, out)
    assert cluster.wait(cluster.submit(SMALL, *words, **env)) == {"N/A": "COMPLETED"}, cluster.story("the last job")
    assert tree(out) == calm
    printed = [path.read_text() for path in cluster.folder.glob("job-*.out") if str(repository) in path.read_text()]
    assert sorted(text.count("Ready after") for text in printed) == [1, 1, 2]
    assert all(text.count("Stopped") == text.count("Ready after") for text in printed)
    assert not [process for process in cluster.processes() if "tritonserver" in process.name()]


def test_the_time_limit_is_near(
    cluster: Slurm, repository: Path, server: TritonServer, calm: dict[str, bytes], tmp_path: Path
) -> None:
    out, env = tmp_path / "out", {"BRATS_LDM_URL": server.grpc_url}
    order(repository, "unet", seconds=30)
    words = (SMALL, "--time=1", "--signal=B:TERM@55", SCRIPT, *OPTIONS, "--out", out)
    job = cluster.submit(*words, **env)
    assert cluster.wait(job) == {"N/A": "FAILED"}, cluster.story("the job")
    assert "stopped: the same sbatch command goes on" in (cluster.folder / f"job-{job}.out").read_text()
    order(repository, "unet")
    assert finish(cluster, out, job, **env) == calm


def test_dask_jobqueue(
    cluster: Slurm, repository: Path, server: TritonServer, calm: dict[str, bytes], tmp_path: Path
) -> None:
    """The program of the page. One of its jobs is killed."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), re.DOTALL)
    small = {"first:8001,second:8001": server.grpc_url, "jobs=20": "jobs=2", "workers=20": "workers=2"}
    small['1000000, "webdataset", preset="fast"'] = '24, "webdataset,png", shard_size=2, steps=2'
    for shown, instead in small.items():
        assert shown in program
        program = program.replace(shown, instead)
    order(repository, "unet", seconds=0.5)
    env = cluster.env | {"DASK_JOBQUEUE__SLURM__INTERFACE": "lo"}
    run = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=env, stdout=-1, stderr=-2, text=True)
    out = tmp_path / "dataset"
    cluster.wait_until(lambda: bool(whole(out)) or run.poll() is not None, "no shard is there")
    victims = cluster.processes(SLURM_JOB_NAME="dask-worker")
    jobs = sorted({process.environ()["SLURM_JOB_ID"] for process in victims})
    cluster.command("scancel", jobs[0])
    order(repository, "unet")
    printed, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, cluster.story(printed)
    assert "Done(images=24, there=0)" in printed
    assert tree(out) == calm
