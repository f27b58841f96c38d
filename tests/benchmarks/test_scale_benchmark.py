"""`python -m benchmarks.scale`: the whole in small, what follows on paper, and the page that shows the recorded run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.device import Device
from benchmarks.report import read
from benchmarks.scale.__main__ import main
from benchmarks.scale.paper import Folder, Server, device_rate, limits_of_size, limits_of_speed
from benchmarks.tables import scale, scale_runs
from support.common import ROOT

SIZES = {
    "answer": {"bytes": 250_000, "receive_cpu_s": 0.001},
    "formats": {
        "webdataset": {"bytes": 20_000, "files_of_shard": 1, "files": 0, "write_cpu_s": 0.003},
        "hdf5": {"bytes": 200_000, "files_of_shard": 1, "files": 0, "write_cpu_s": 0.009},
        "png": {"bytes": 15_000, "files_of_shard": 0, "files": 1, "write_cpu_s": 0.003},
        "nifti": {"bytes": 200_000, "files_of_shard": 0, "files": 2, "write_cpu_s": 0.019},
    },
    "folder": {
        "open_cpu_s": {"shard": 1e-3, "image": 1e-6},
        "finish_cpu_s": {"shard": 2e-3, "image": 0.0},
        "marks": {"shard": 2000.0, "image": 80.0},
        "manifest": {"shard": 100.0, "image": 0.0},
    },
}


@pytest.mark.slow
def test_the_whole_of_it_in_small(small_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--repository", str(small_repository), "--work", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "scale.json").read_text())
    fleet, folder, sizes = (record[name]["result"] for name in ("fleet", "folder", "sizes"))
    for policies in (*fleet["mishaps"].values(), *fleet["shard_sizes"].values()):
        assert all(figures["stretch"]["min"] > 0.999 for figures in policies.values())
    # Killed hundreds of times, and the same bytes.
    assert folder["counts"]["killed"] > 20
    assert folder["counts"]["leftovers"] > 0
    assert (folder["different"], folder["faults"], folder["files"] > 600) == ([], [], True)
    assert sizes["answer"]["bytes"] == pytest.approx(240 * 240 * 4, rel=0.01)
    for one in (sizes["answer"], *sizes["formats"].values()):
        assert min(one.values()) >= 0
        assert one["bytes"] > 1000
    assert {name: one["files"] for name, one in sizes["formats"].items() if one["files"]} == {
        "png": 1, "png16": 1, "nifti": 2, "dicom": 1,
    }  # fmt: skip
    assert sizes["folder"]["marks"]["image"] > 64  # each has a SHA-256 in hexadecimal digits
    assert (tmp_path / "fleet.png").stat().st_size < 250_000
    shown = capsys.readouterr().out
    assert "\n".join([*scale.tables(record), *scale_runs.tables(record)]) in shown
    engines, servers, unequal = (record[name]["result"] for name in ("engines", "servers", "unequal"))
    assert (engines["dask"]["files_that_differ"], engines["dask"]["files"]) == (0, 23)
    assert {name: servers[name]["two"]["n"] for name in ("waiting", "cores")} == {"waiting": 1, "cores": 1}
    assert set(unequal["contestants"]) == {"fast alone", "in turn", "least connections"}
    assert unequal["simulated"]["in turn"] == pytest.approx(2 / 3, rel=0.05)  # half as many as twice the slow one's


def test_servers_for_a_deadline() -> None:
    server = Server("a server", 2.0)
    assert server.hours(7200) == 1
    assert [server.needed(count, 1000.0) for count in (1, 2000, 2001)] == [1, 1, 2]
    assert Server("a tenth", 0.1).needed(3, 10.0) == 3  # not 4: 3 / 0.1 / 10 is a little above 3
    assert device_rate(Device(base=0.01, row=0.001, decode=0.02), steps=10, rows=4) == pytest.approx(4 / 0.22)


def test_a_folder_on_paper() -> None:
    folder = Folder(2500, 1000, "webdataset", SIZES)
    assert (folder.shards, folder.files) == (3, 6)
    assert folder.bytes == 2500 * 20_000 + (3 * 2000 + 2500 * 80) + 3 * 100
    assert (folder.open_s, folder.finish_s) == (pytest.approx(0.0055), pytest.approx(0.006))
    assert Folder(2500, 1000, "nifti", SIZES).files == 3 + 5000


def test_what_breaks_first() -> None:
    speed = limits_of_speed(SIZES)
    assert [limit.at for limit in speed] == sorted(limit.at for limit in speed)
    at = {limit.what: limit.at for limit in speed}
    assert at["one core of a client, webdataset"] == pytest.approx(1 / 0.004)
    assert at["one client's network, 10 Gbit/s"] == pytest.approx(10e9 / 8 / 250_000)
    size = limits_of_size(SIZES)
    assert [limit.at for limit in size] == sorted(limit.at for limit in size)
    at = {limit.what: limit.at for limit in size}
    assert at["a manifest of 100 MB"] == pytest.approx(1000 * 1e6)
    assert at["a million names in one folder"] == 1000 * 1e6 / 2
    assert at["ten CPU minutes to open the folder"] == pytest.approx(1000 * 600 / 2e-3)
    assert at["six digits in the names of shards"] == 1e9
    # Files of 15 kB: less than the 16 KiB for which there is an inode. A mark for each shard comes on top.
    assert at["the inodes of a disk of 1 TB, png"] == pytest.approx(1e12 / 16_384 * 1000 / 1001)
    assert at["the bytes of a disk of 1 TB, webdataset"] == pytest.approx(1e12 / (20_000 + 80 + 2100 / 1000))


def test_the_page_shows_the_recorded_run() -> None:
    """And its picture was drawn with it."""
    page = (ROOT / "docs" / "sizing.md").read_text()
    for block in (scale.scale_servers, scale.scale_sizes, scale.scale_limits, scale.scale_fleet, scale.scale_folder):
        assert "\n".join(block(read)) in page
    record = read("scale")
    assert f"`{record['fleet']['command']}`" in page
    for section in ("fleet", "folder", "sizes"):
        assert "error" not in record[section]
    assert record["folder"]["result"]["different"] == []
    assert "](fleet.png)" in page
    assert (ROOT / "docs" / "fleet.png").stat().st_size < 250_000


def test_cells_of_tables_are_short() -> None:
    for block in (scale.scale_servers, scale.scale_sizes, scale.scale_limits, scale.scale_fleet, scale.scale_folder):
        for line in block(read):
            assert all(len(cell.split()) <= 15 for cell in line.split("|")[1:-1]), line
