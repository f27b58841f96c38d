"""Shards made by Ray, Dask and other engines: the folder is that of one process, whatever happens on the way."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import dask
import pytest

from brats_ldm_client import Client, EngineError, InvalidRequest, MissingPackage
from brats_ldm_client._cli import main
from brats_ldm_client.bulk import (
    Done,
    Engine,
    Plan,
    engines,
    make_all,
    make_all_with,
    make_shards,
    model_of,
    on_dask,
    on_ray,
    plan_for,
)
from support.bulk import arguments, tree
from support.fake_triton import Served

SIZE = ("--count", 10, "--shard-size", 4)


@pytest.fixture
def plan(served: Served) -> Plan:
    with Client(served.url) as client:
        return plan_for(model_of(client), 10, "png", shard_size=2)


@pytest.fixture
def calm(served: Served, plan: Plan, tmp_path: Path) -> dict[str, bytes]:
    """The folder of one process."""
    with Client(served.url) as client:
        make_all(client, plan, tmp_path / "calm")
    return tree(tmp_path / "calm")


class Heard:
    """A report that keeps what it hears, and does something then."""

    def __init__(self, then: Callable[[int], object] = lambda shards: None) -> None:
        self.before, self.shards, self._then = (0, 0), list[tuple[int, int]](), then

    def there(self, images: int, shards: int) -> None:
        self.before = images, shards

    def image(self, made: object) -> None:
        raise AssertionError("images are not reported")

    def shard(self, index: int, images: int) -> None:
        self.shards.append((index, images))
        self._then(len(self.shards))


def test_map_is_an_engine(served: Served, plan: Plan, calm: dict[str, bytes], tmp_path: Path) -> None:
    heard, connection = Heard(), {"url": served.url}
    assert make_all_with(map, plan, tmp_path / "out", connection, heard) == Done(10, 0)
    assert tree(tmp_path / "out") == calm
    assert heard.shards == [(index, 2) for index in range(5)]
    (tmp_path / "out" / "shard-000003.json").unlink()
    assert make_all_with(map, plan, tmp_path / "out", connection, heard) == Done(2, 8)
    assert (heard.before, heard.shards[5:]) == ((8, 4), [(3, 2)])
    served.triton.received.clear()
    assert make_all_with(map, plan, tmp_path / "out", connection) == Done(0, 10)
    assert not served.triton.received
    assert tree(tmp_path / "out") == calm


@pytest.mark.parametrize("pool", [ThreadPoolExecutor(3), ProcessPoolExecutor(2, get_context("spawn"))])
def test_a_pool_of_the_standard_library_is_one(
    pool: ThreadPoolExecutor, served: Served, plan: Plan, calm: dict[str, bytes], tmp_path: Path
) -> None:
    with pool:
        make_all_with(pool.map, plan, tmp_path / "out", {"url": served.url})
    assert tree(tmp_path / "out") == calm


def test_an_engine_that_leaves_a_shard_out(served: Served, plan: Plan, tmp_path: Path) -> None:
    def lazy(make: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        return map(make, [index for index in shards if index not in (2, 3)])

    with pytest.raises(EngineError, match="the engine has left out 2 shards, the first of them 2"):
        make_all_with(lazy, plan, tmp_path / "out", {"url": served.url})
    assert not (tmp_path / "out" / "summary.html").exists()


def test_workers_that_write_to_another_folder(
    served: Served, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As machines do that do not share the folder. It shows after the first shard."""
    monkeypatch.setattr(engines, "_SEEN_WITHIN", 0.0)
    asked = []

    def elsewhere(make: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        for index in shards:
            asked.append(index)
            yield index

    with pytest.raises(EngineError, match=r"a worker has made shard 0, but it is not in /.*/out here: choose a folder"):
        make_all_with(elsewhere, plan, tmp_path / "out", {"url": served.url})
    assert asked == [0]


def test_one_engine_at_a_time(served: Served, plan: Plan, calm: dict[str, bytes], tmp_path: Path) -> None:
    """Another run that begins meanwhile is refused, and the first one goes on."""
    out, connection = tmp_path / "out", {"url": served.url}

    def beside(make: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        for index in shards:
            if index == 1:
                with pytest.raises(InvalidRequest, match="another run is writing to"):
                    make_all_with(map, plan, out, connection)
            yield make(index)

    assert make_all_with(beside, plan, out, connection) == Done(10, 0)
    assert tree(out) == calm


def test_a_damaged_shard_of_a_finished_folder_is_made_again(
    served: Served, plan: Plan, calm: dict[str, bytes], tmp_path: Path
) -> None:
    """By an engine and by shards too: nobody signs what is damaged."""
    out, connection = tmp_path / "out", {"url": served.url}
    make_all_with(map, plan, out, connection)
    mark = out / "shard-000002.json"
    whole = mark.read_bytes()
    for repair in (
        lambda client: make_all_with(map, plan, out, connection),
        lambda client: make_shards(client, plan, out, range(5)),
    ):
        mark.write_bytes(whole.replace(b'"least": 4.0', b'"least": 5.0'))
        assert mark.read_bytes() != whole
        with Client(served.url) as client:
            assert repair(client) == Done(2, 8)
        assert tree(out) == calm


def test_a_fault_of_an_engine_is_one_line(served: Served, plan: Plan, tmp_path: Path) -> None:
    def broken(make: Callable[[int], int], shards: Sequence[int]) -> Iterator[int]:
        raise RuntimeError("all workers are gone\nlong advice")

    with pytest.raises(EngineError, match=r"^the engine failed: RuntimeError: all workers are gone$"):
        make_all_with(broken, plan, tmp_path / "out", {"url": served.url})


def test_a_job_travels_and_keeps_its_secret(plan: Plan, tmp_path: Path) -> None:
    job = engines.Job(plan, tmp_path, {"url": "a:8001,b:8001", "secret": "s3cret"})
    assert "s3cret" not in repr(job)
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize("engine", [on_ray, on_dask])
def test_an_engine_without_workers_or_without_its_package(
    engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="workers is 0: it must be at least 1"):
        engine(workers=0)
    package = {on_ray: "ray", on_dask: "distributed"}[engine]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"{package} is not installed: install it with pip install {package}"):
        engine(workers=1)


def test_shards_of_one_process(served: Served, plan: Plan, calm: dict[str, bytes], tmp_path: Path) -> None:
    with Client(served.url) as client:
        assert make_shards(client, plan, tmp_path / "out", [1, 3, 1]) == Done(4, 0)
        assert make_shards(client, plan, tmp_path / "out", range(3)) == Done(4, 2)
        with pytest.raises(InvalidRequest, match="there is no shard 5: choose 0 to 4"):
            make_shards(client, plan, tmp_path / "out", [4, 5])
        assert not (tmp_path / "out" / "shard-000004.json").exists()
        assert make_all(client, plan, tmp_path / "out") == Done(2, 8)
    assert tree(tmp_path / "out") == calm


def test_the_command_makes_blocks_of_shards(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, *more: object) -> str:
        assert main(arguments(tmp_path / name, served.url, *SIZE, *more)) == 0
        return re.sub(r"in [\d.]+ s", "in T", capsys.readouterr().out)

    run("calm")
    rest = f"in {tmp_path / 'out'}; the command without --shards makes the rest and the summary page\n"
    assert run("out", "--shards", "1..9") == f"6 synthetic slices (seeds 4 to 9) in T: 2 shards {rest}"
    again = run("out", "--shards", "1..1")
    assert again == f"4 synthetic slices (seeds 4 to 7), 4 of them there before: 1 shard {rest}"
    assert not (tmp_path / "out" / "summary.html").exists()
    assert run("out").startswith("10 synthetic slices (seeds 0 to 9), 6 of them there before, in T: 3 shards in ")
    assert tree(tmp_path / "out") == tree(tmp_path / "calm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shards", "2"), "--shards must be FROM..TO, such as 0..9, or 5..5 for one, not '2'"),
        (("--shards", "2..1"), "--shards must be FROM..TO, such as 0..9, or 5..5 for one, not '2..1'"),
        (("--shards", "3..5"), "--shards 3..5: there are 3 shards, so FROM is at most 2"),
        (("--shards", "0..1", "--engine", "dask"), "--shards is for one process, and --engine for all shards"),
        (("--engine", "spark"), "invalid choice: 'spark'"),
        (("--engine", "dask", "--workers", "0"), "--workers must be at least 1, not 0"),
        (("--workers", "2"), "--workers is for --engine: pass both, or none"),
    ],
)
def test_options_that_do_not_fit(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(tmp_path / "out", "127.0.0.1:1", *SIZE, *options))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "address", "words"),
    [
        ("ray", None, "RAY_ADDRESS is not set: set it to the address of a Ray cluster"),
        ("ray", "127.0.0.1:1", "no Ray answers at 127.0.0.1:1: Connection refused; check RAY_ADDRESS"),
        ("ray", "ray://127.0.0.1:1", "no Ray answers at ray://127.0.0.1:1: Connection refused; check RAY_ADDRESS"),
        ("ray", "foo", "no Ray answers at foo: "),
        ("dask", "foo", "no Dask scheduler answers at foo: missing port number"),
        ("dask", None, "DASK_SCHEDULER_ADDRESS is not set: set it to the address of a Dask scheduler"),
        ("dask", "tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1: "),
    ],
)
def test_no_cluster_is_started_unasked(
    engine: str,
    address: str | None,
    words: str,
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Others could reach it, and give it programs to run."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if engine == "ray" and address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    cluster = {"scheduler-address": address if engine == "dask" else None, "distributed.comm.timeouts.connect": "1s"}
    with dask.config.set(cluster):
        assert main(arguments(tmp_path / "out", served.url, *SIZE, "--engine", engine)) == 1
    assert f"brats-ldm: {words}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
