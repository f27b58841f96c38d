"""`brats-ldm bulk` against the fake server: what stops it, what it leaves, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import h5py
import numpy as np
import pytest

from brats_ldm_client import PRESETS, Client, ServerError, WeightsChanged, _cli_bulk
from brats_ldm_client._cli import main
from brats_ldm_client._presets import DEFAULTS
from brats_ldm_client.bulk import (
    FORMATS,
    Done,
    check_hashes,
    check_sample,
    make_all,
    make_shard,
    model_of,
    plan_for,
)
from brats_ldm_client.bulk.workplace import workplace
from brats_ldm_client.testing import FakeTransport
from support.bulk import arguments, bulk, tree
from support.common import heeding_signals, no_file_above
from support.fake_triton import Served

SIZE = ("--count", 10, "--shard-size", 4, "--rows-per-request", 2, "--concurrency", 2)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, into tmp_path/out: its status, output and errors."""

    def run(*more: object) -> tuple[int, str, str]:
        served.triton.received.clear()
        status = main(arguments(tmp_path / "out", served.url, *SIZE, *more))
        return status, *capsys.readouterr()

    return run


def asked(served: Served) -> list[int]:
    """The seeds in the order in which they were asked for, without the probe's."""
    return [seed for seeds in served.triton.seeds()[1:] for seed in seeds]


def test_a_run(run: Run, served: Served, tmp_path: Path) -> None:
    status, out, err = run("--seed-base", 100, "--format", "webdataset,png")
    assert status == 0, err
    folder = tmp_path / "out"
    words = f": 3 shards in {folder}; look at {folder}/summary.html\n"
    assert re.fullmatch(r"10 synthetic slices \(seeds 100 to 109\) in [\d.]+ s" + re.escape(words), out)
    assert re.fullmatch(r"(\d+ of 10 images, [123] of 3 shards, [\d.]+ images/s, 0:00:\d\d left\n){3}", err)
    assert sorted(asked(served)) == [*range(100, 110)]
    names = {f"shard-00000{i}{end}" for i in range(3) for end in (".json", ".tar", "-png")}
    assert {path.name for path in folder.iterdir()} == names | {"manifest.json", "summary.html", "contact_sheet.png"}
    assert len([*folder.glob("*-png/*.png")]) == 10
    mark = json.loads((folder / "shard-000002.json").read_text())
    assert (mark["seeds"], mark["pixels"]["least"], mark["pixels"]["largest"]) == ([108, 109], 108.0, 109.0)
    pictures = {f"shard-000002-png/slice_seed000000{n}.png" for n in (108, 109)}
    assert set(mark["files"]) == {"shard-000002.tar"} | pictures


def test_a_run_that_waits_says_so(run: Run, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a minute, which is shorter here: a client that waits for a server is silent."""
    monkeypatch.setattr(_cli_bulk, "_QUIET_SECONDS", 0.05)
    served.triton.behave = lambda seeds, context: time.sleep(0.5) if seeds[0] == 4 else None
    status, _, err = run()
    assert status == 0
    assert "no image for 0 s: servers that are busy or gone are asked again until --retry is over\n" in err


def test_a_second_run_makes_what_is_missing(run: Run, served: Served, tmp_path: Path) -> None:
    folder, formats = tmp_path / "out", ("--format", ",".join(FORMATS))
    assert run(*formats)[0] == 0
    whole = tree(folder)
    assert run(*formats)[1].startswith("10 synthetic slices (seeds 0 to 9), 10 of them there before: 3 shards in ")
    assert asked(served) == []
    assert tree(folder) == whole
    (folder / "shard-000000.json").unlink()
    next(folder.glob("shard-000001-dicom/*")).write_bytes(b"half")
    shutil.rmtree(folder / "shard-000002.zarr")
    (folder / "summary.html").unlink()
    assert ", 0 of them" not in run(*formats)[1]
    assert sorted(asked(served)) == [*range(10)]
    assert tree(folder) == whole
    (folder / "shard-000001.tar").unlink()
    assert "6 of them there before" in run(*formats)[1]
    assert sorted(asked(served)) == [4, 5, 6, 7]
    assert tree(folder) == whole


def test_shards_of_several_processes_are_those_of_one(run: Run, served: Served, tmp_path: Path) -> None:
    """As a cluster makes them: each shard by itself, twice here and there, in any order."""
    assert run("--format", "hdf5,nifti")[0] == 0
    with Client(served.url) as client:
        plan = plan_for(model_of(client), 10, "hdf5,nifti", shard_size=4)
        for index in (2, 0, 2, 1):
            make_shard(client, plan, tmp_path / "parts", index)
        assert make_all(client, plan, tmp_path / "parts") == Done(images=0, there=10)
    assert tree(tmp_path / "parts") == tree(tmp_path / "out")


def test_a_mark_that_does_not_fit_the_manifest_is_made_again(run: Run, served: Served, tmp_path: Path) -> None:
    assert run("--format", "hdf5")[0] == 0
    whole = tree(tmp_path / "out")
    mark = tmp_path / "out" / "shard-000001.json"
    mark.write_text(mark.read_text().replace('"least": 4.0', '"least": 3.0'))
    (tmp_path / "out" / "summary.html").write_text("mine")
    assert run("--format", "hdf5")[0] == 0
    assert sorted(asked(served)) == [4, 5, 6, 7]
    assert tree(tmp_path / "out") == whole


def test_two_runs_in_one_folder(run: Run, served: Served, tmp_path: Path) -> None:
    """The second one leaves, and takes nothing of the first away."""
    folder = tmp_path / "out"
    with workplace(folder, "run"), workplace(folder, "shard-000001") as place:
        (place / "half").write_text("half")
        assert run()[2] == f"brats-ldm: another run is writing to {folder}: wait until it ends, or stop it\n"
        assert (place / "half").exists()
    assert [*folder.iterdir()] == []


def test_what_killed_runs_leave_is_removed(run: Run, served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    dead = folder / ".shard-000000.0123abcd.tmp"
    (dead / "shard-000000.zarr" / "image").mkdir(parents=True)
    (dead / "lock").touch()
    (folder / ".run.89abcdef.tmp").mkdir()
    assert run()[0] == 0
    assert [*folder.glob(".*")] == []


def test_a_folder_of_something_else_is_refused(run: Run, served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    status, _, err = run()
    assert status == 1
    assert err == f"brats-ldm: {folder} is not empty and has no manifest.json of a run in bulk: choose another folder\n"
    (folder / "manifest.json").write_text("{}")
    assert "is not of a run in bulk: choose another folder" in run()[2]
    shutil.rmtree(folder)
    folder.write_text("mine")
    assert run()[2] == f"brats-ldm: {folder} is a file: choose a folder\n"
    assert folder.read_text() == "mine"


def test_another_plan_is_refused(run: Run, served: Served, tmp_path: Path) -> None:
    assert run("--steps", 20)[0] == 0
    before = tree(tmp_path / "out")
    status, _, err = run("--steps", 30, "--format", "hdf5")
    assert status == 1
    words = "holds a run with steps 20, not 30; formats webdataset, not hdf5: give the same options, or choose another"
    assert err == f"brats-ldm: {tmp_path / 'out'} {words} folder\n"
    assert asked(served) == []
    served.triton.digest = "sha256:other"
    assert "ask a server with those weights, or choose another folder" in run("--steps", 20)[2]
    assert tree(tmp_path / "out") == before


def test_other_weights_on_the_way_stop_it(run: Run, served: Served, tmp_path: Path) -> None:
    """What is whole stays, and nothing of the other weights is in it."""
    first = served.triton.digest

    def change(seeds: list[int], context: grpc.ServicerContext) -> None:
        served.triton.digest = "sha256:other" if seeds[0] >= 6 else first

    assert run()[0] == 0
    whole = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    served.triton.behave = change
    status, _, err = run("--concurrency", 1)
    assert status == 1
    assert len(err.splitlines()) == 2
    assert "sha256:other" in err
    assert "1 of 3 shards are whole; the same command makes the rest" in err
    left = tree(tmp_path / "out")
    assert set(left) == {"manifest.json", "shard-000000.json", "shard-000000.tar"}
    assert all(left[name] == whole[name] for name in left if name != "manifest.json")
    served.triton.digest, served.triton.behave = "sha256:other", lambda seeds, context: None
    assert "ask a server with those weights" in run()[2]
    served.triton.digest = first
    assert run()[0] == 0
    assert tree(tmp_path / "out") == whole


def test_shards_take_no_image_of_other_weights(served: Served, tmp_path: Path) -> None:
    """As after a change between two shards, which `iter_images` cannot see."""
    with Client(served.url) as client:
        plan = plan_for(model_of(client), 4, "png", shard_size=2)
        make_shard(client, plan, tmp_path / "out", 0)
        served.triton.digest = "sha256:other"
        with pytest.raises(WeightsChanged, match="the image of seed 2 was made with the weights sha256:other"):
            make_shard(client, plan, tmp_path / "out", 1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "shard-000000-png", "shard-000000.json"}


@pytest.mark.parametrize("format", ["png", "hdf5", "zarr"])
def test_images_of_another_size_are_refused(run: Run, served: Served, tmp_path: Path, format: str) -> None:
    def grow(seeds: list[int], context: grpc.ServicerContext) -> None:
        served.triton.size = 24 if seeds[0] < 2 else 32

    served.triton.behave = grow
    status, _, err = run("--format", format, "--concurrency", 1)
    assert status == 1
    assert err.startswith("brats-ldm: the image of seed 2 is (32, 32), and those before it are (24, 24)")
    assert set(tree(tmp_path / "out")) == {"manifest.json"}


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_one_image_in_all_formats(served: Served, tmp_path: Path, seed: int) -> None:
    with Client(served.url) as client:
        plan = plan_for(model_of(client), 1, FORMATS, seed_base=seed, shard_size=1)
        assert make_all(client, plan, tmp_path / "out") == Done(1, 0)
        assert check_hashes(tmp_path / "out").faults == check_sample(client, tmp_path / "out").faults == []


def test_images_of_what_is_no_number(tmp_path: Path) -> None:
    """They are kept as they are where a format can, and said on the summary page."""
    transport = FakeTransport(image=lambda seed: np.full((240, 240), (np.nan, np.inf, -np.inf)[seed % 3], np.float32))
    with Client(transport=transport) as client:
        plan = plan_for(model_of(client), 5, FORMATS, shard_size=2)
        make_all(client, plan, tmp_path / "out")
        assert check_sample(client, tmp_path / "out").faults == []
    assert f"{5 * 240 * 240:,} pixels" in (tmp_path / "out" / "summary.html").read_text()


def test_a_server_that_refuses_leaves_no_folder(run: Run, served: Served, tmp_path: Path) -> None:
    served.triton.behave = lambda seeds, context: (
        None if seeds == [0] else context.abort(grpc.StatusCode.INVALID_ARGUMENT, "steps=0: must be 1 to 1000")
    )
    status, _, err = run("--steps", 0)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "steps=0: must be 1 to 1000" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk(run: Run, served: Served, tmp_path: Path, format: str) -> None:
    """One line that names the file; no half file has its name; with room again the same command goes on."""
    served.triton.size = 240
    assert run("--format", format)[0] == 0
    folder = tmp_path / "out"
    whole = tree(folder)
    shutil.rmtree(folder)
    largest = max(len(content) for name, content in whole.items() if name.startswith("shard-000000"))
    with no_file_above(min(largest - 1, 100_000)):
        status, _, err = run("--format", format)
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"brats-ldm: {folder}/shard-000000"), last
    assert "File too large; 0 of 3 shards are whole; the same command makes the rest" in last
    assert set(tree(folder)) == {"manifest.json"}
    assert run("--format", format)[0] == 0
    assert tree(folder) == whole


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_sigterm(served: Served, tmp_path: Path, number: int, status: int, word: str) -> None:
    def slow(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds[0] >= 6:
            served.triton.stall(seeds, context)

    served.triton.behave = slow
    out = tmp_path / "out"
    command = bulk(out, served.url, *SIZE)
    process = subprocess.Popen(heeding_signals(command), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "shard-000000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert err.splitlines()[-1] == f"brats-ldm: {word}; 1 of 3 shards are whole; the same command makes the rest"
    assert set(tree(out)) == {"manifest.json", "shard-000000.json", "shard-000000.tar"}


def test_an_error_of_the_server_ends_a_run(served: Served, tmp_path: Path) -> None:
    def fail(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds[0] >= 4:
            context.abort(grpc.StatusCode.INTERNAL, "unet gave up")

    served.triton.behave = fail
    with Client(served.url, rows_per_request=2, concurrency=1) as client:
        plan = plan_for(model_of(client), 10, "zarr", shard_size=3)
        with pytest.raises(ServerError, match="unet gave up"):
            make_all(client, plan, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "shard-000000.json", "shard-000000.zarr"}, "what has come is not thrown away"


@pytest.mark.parametrize(("format", "package"), [("webdataset", "webdataset"), ("hdf5", "h5py"), ("zarr", "zarr")])
def test_a_package_that_is_missing(
    run: Run, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run("--format", f"png,{format}")
    assert (status, asked(served)) == (1, [])
    assert err == f"brats-ldm: {package} is not installed: install it with pip install {package}\n"
    assert not (tmp_path / "out").exists()


def test_drafts_are_verified_as_drafts(
    run: Run, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images are asked for by the same decoder and grid again, and each file says them."""
    more = {"timestep_grid": PRESETS["draft"].timestep_grid, "decoder": PRESETS["draft"].decoder}
    assert not DEFAULTS.items() & more.items()
    assert run("--preset", "draft", "--format", ",".join(FORMATS))[0] == 0
    served.triton.received.clear()
    assert main(["verify", str(tmp_path / "out"), "--url", served.url]) == 0, capsys.readouterr().err
    probe, *again = served.triton.received
    assert sorted(seed for tensors in again for seed in tensors["seed"][:, 0].tolist()) == [*range(10)]
    assert all(tensors[name][0, 0] == value for tensors in again for name, value in more.items())
    assert not more.keys() & probe.keys(), "it asks for the weights alone"
    with h5py.File(tmp_path / "out" / "shard-000000.h5") as file:
        assert more.items() <= dict(file.attrs).items()
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        records = [json.load(archive.extractfile(name)) for name in archive.getnames() if name.endswith(".json")]
    assert len(records) == 4
    assert all(more.items() <= record.items() for record in records)
    page = (tmp_path / "out" / "summary.html").read_text()
    assert all(value in page for value in more.values())
    assert (
        f"timestep_grid {more['timestep_grid']}, not leading; decoder tiny, not full"
        in run("--format", ",".join(FORMATS))[2]
    )


def test_a_folder_of_an_older_client_is_finished_byte_for_byte(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run("--format", "webdataset,dicom")[0] == 0
    whole = tree(folder)
    assert not re.search(rb"timestep_grid|leading|decoder", b"".join(whole.values()), re.IGNORECASE)
    manifest = json.loads((folder / "manifest.json").read_text())
    old = {"seed_base", "count", "shard_size", "sampler", "steps", "eta", "formats", "model_name", "model_digest"}
    assert set(manifest["plan"]) == old, "that client would not know another field"
    shutil.rmtree(folder / "shard-000001-dicom")
    assert run("--format", "webdataset,dicom")[0] == 0
    assert tree(folder) == whole


def test_a_warning_is_said_once(run: Run, served: Served) -> None:
    served.triton.more = {"warning": "300 steps leave out something"}
    status, _, err = run("--steps", 300)
    assert status == 0
    assert err.count("brats-ldm: warning: 300 steps leave out something\n") == 1


@pytest.mark.parametrize(
    "more",
    [
        ("--count", 0),
        ("--count", "x"),
        ("--shard-size", 0),
        ("--format", "npz"),
        ("--format", ","),
        ("--preset", "fast", "--steps", 20),
        ("--preset", "fast", "--timestep-grid", "karras"),
    ],
)
def test_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[object, ...]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments(tmp_path / "out", "127.0.0.1:1", "--count", 1, *more))
    assert exit.value.code == 2
    assert "usage: brats-ldm" in capsys.readouterr().err
