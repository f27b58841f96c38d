"""`python -m benchmarks.cost`: the whole in small, the lines through made-up numbers, and the page that shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.cost.__main__ import main
from benchmarks.cost.fit import assemble, line
from benchmarks.harness.machine import describe
from benchmarks.tables.cost import AXES, tables
from brats_ldm_client._calibrate import Calibration
from support.common import ROOT, run_python

MODEL = Calibration(request=0.01, step_base=0.004, step_row=0.013, decode=0.05, worst=0.01, spread=0.02)


def made_up() -> dict[str, dict]:
    """Sections of a server that follows MODEL, but for calls of 16 images, which take a quarter longer."""
    facts = {"machine": describe(), "seconds": 1.0, "command": "python -m benchmarks.cost", "profile": "cpu"}
    facts["model"] = "made up"

    def point(at: int, images: int, steps: int, in_flight: int) -> dict:
        median = MODEL.predict(images, steps, in_flight) * (1.25 if images == 16 else 1)
        seconds = {"median": median, "min": 0.9 * median, "max": 1.1 * median, "n": 3}
        return {"at": at, "images": images, "steps": steps, "in_flight": in_flight, "seconds": seconds}

    def state(rows: int) -> dict:
        processes = {"unet": {"rss": 100 + 2 * rows, "peak": 110 + 3 * rows}, "vae_decoder": {"rss": 140, "peak": 140}}
        return {"rows": rows, "processes": processes, "together": {"rss": 340 + 5 * rows, "shared": 4, "peaks": 300}}

    points = {
        "steps": [point(steps, 1, steps, 1) for steps in (5, 50)],
        "rows": [point(rows, rows, 10, rows) for rows in (1, 4)],
        "clients": [point(clients, clients, 10, clients) for clients in (1, 2)],
        "images": [point(images, images, 10, 32) for images in (1, 16, 64)],
    }
    steady = {"reference_s": {"median": 2.0, "min": 1.9, "max": 2.2}, "others": 0.01}
    results = {
        "calibration": {"model": vars(MODEL), **steady},
        **{name: {"points": panel, **steady} for name, panel in points.items()},
        "memory": {"points": [state(rows) for rows in (0, 1, 4, 16)]},
        "decoder": {"points": [{"rows": rows, "rss": 50 + rows, "peak": 60 + 40 * rows} for rows in (1, 2, 4)]},
    }
    return {name: {**facts, "result": result} for name, result in results.items()}


def test_the_largest_error_of_each_panel_is_found() -> None:
    record = assemble(made_up())
    worst = {name: record[name]["worst"] for name in AXES}
    assert worst["images"] == pytest.approx(1 / 1.25 - 1)
    assert [worst[name] for name in ("steps", "rows", "clients")] == pytest.approx([0, 0, 0], abs=1e-9)
    text = "\n".join(tables(record))
    assert "| images of one call of the client: 16 | 10 | 3.66 |" in text
    assert "-20.0%" in text


def test_a_machine_that_has_become_slower_is_told_apart_from_a_wrong_model() -> None:
    sections = made_up()
    clients = sections["clients"]["result"]
    clients["reference_s"] = {"median": 2.2, "min": 2.1, "max": 2.3}
    for point in clients["points"]:
        point["seconds"]["median"] *= 1.1
    panel = assemble(sections)["clients"]
    assert (panel["drift"], panel["worst"]) == (pytest.approx(0.1), pytest.approx(1 / 1.1 - 1))
    assert panel["worst_steady"] == pytest.approx(0, abs=1e-9)


def test_lines_through_memory_are_found_again_and_leave_the_idle_server_out() -> None:
    record = assemble(made_up())
    memory = record["memory_mb"]
    assert memory["peak_lines"] == {"unet": pytest.approx({"base": 110, "row": 3, "worst": 0}, abs=1e-9)}
    assert record["decoder_mb"]["peak_line"] == pytest.approx({"base": 60, "row": 40, "worst": 0}, abs=1e-9)
    assert memory["together_line"] == pytest.approx({"base": 200, "row": 5, "worst": 0}, abs=1e-9)
    crooked = line([1, 2, 4], [100, 120, 300])
    assert crooked["worst"] > 0.1


@pytest.mark.slow
def test_the_whole_of_it_in_small_goes_on_where_it_was(small_repository: Path, tmp_path: Path, capsys) -> None:
    command = ["--quick", "--repository", str(small_repository), "--work", str(tmp_path)]
    assert main(command) == 0
    record = json.loads((tmp_path / "cost.json").read_text())
    model = Calibration(**record["calibration"]["model"])
    for name in AXES:
        # The difference of two counters in ticks of 10 ms, over a second or two: it can be a little below nothing.
        assert -0.2 < record[name]["others"] < 1
        assert record[name]["reference_s"]["n"] == len(record[name]["points"])
        for point in record[name]["points"]:
            assert point["predicted"] == model.predict(point["images"], point["steps"], point["in_flight"])
            assert point["error"] == pytest.approx(point["predicted"] / point["seconds"]["median"] - 1)
    idle, *loaded = record["memory_mb"]["points"]
    networks = {"unet", "vae_decoder", "vae_decoder_tiny"}
    assert set(idle["processes"]) == {"tritonserver", "mri_ldm", "mri_ldm_stream", *networks}
    for state in (idle, *loaded):
        assert all(process["peak"] >= process["rss"] > 10 for process in state["processes"].values())
        # Shared libraries and shared memory are counted once.
        assert state["together"]["rss"] < sum(process["rss"] for process in state["processes"].values())
    assert loaded[-1]["together"]["rss"] > idle["together"]["rss"]
    assert (tmp_path / "cost.png").stat().st_size < 250_000
    assert "\n".join(tables(record)) in capsys.readouterr().out

    shutil.move(tmp_path / "steps.json", tmp_path / "gone")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json") if path.name != "cost.json"}
    assert main(command) == 0
    again = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json") if path.name != "cost.json"}
    assert set(again) - set(before) == {"steps.json"}
    assert {name: again[name] for name in before} == before


def test_the_page_shows_the_recorded_run() -> None:
    """And its picture was drawn with it."""
    record = json.loads((ROOT / "benchmarks" / "cost.json").read_text())
    page = (ROOT / "docs" / "cost.md").read_text()
    assert "\n".join(tables(record)) in page
    assert f"`{record['command']}`" in page
    assert "](cost.png)" in page
    assert (ROOT / "docs" / "cost.png").stat().st_size < 250_000


def test_help_is_quick_and_a_wrong_repository_is_named(tmp_path: Path, capsys) -> None:
    done = run_python("-X", "importtime", "-m", "benchmarks.cost", "--help")
    assert "--quick" in done.stdout
    assert "torch" not in done.stderr
    assert "onnxruntime" not in done.stderr
    with pytest.raises(SystemExit, match="2"):
        main(["--repository", str(tmp_path)])
    assert f"no mri_ldm/1/model.json in {tmp_path}: give an exported repository" in capsys.readouterr().err
