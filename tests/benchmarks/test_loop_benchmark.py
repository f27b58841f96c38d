"""The benchmark of the loop beside its calls, in small: what it counts and records. How fast it was is for no test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.micro.loop import Done, main
from support.common import ROOT, run_python


@pytest.mark.slow
def test_every_step_is_counted_and_held_against_a_bare_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loop.json"
    out.write_text(json.dumps({"before": {"machine": {}, "records": []}}))
    assert main(["--quick", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert list(record) == ["before", "now"]  # what else is there is kept
    assert record["now"]["machine"]["cores"] > 0
    records = record["now"]["records"]
    cells = [(entry["most_steps_a_call"], entry["rows"], entry["sampler"]) for entry in records]
    assert cells == [(most, rows, sampler) for most in (1, 5) for rows in (1, 2) for sampler in ("ddim", "ddpm")]
    for entry in records:
        assert entry["row_steps"] == 20 * 2 * entry["rows"]
        assert entry["step_ms"]["n"] == entry["bare_call_ms"]["n"] == 2
        most = entry["most_steps_a_call"]
        assert 1 <= entry["steps_a_call"] <= most
        assert 1 <= entry["rows_a_call"] <= entry["rows"]
        if most == 1:
            assert entry["calls"] * entry["rows_a_call"] == entry["row_steps"]
        else:
            assert entry["steps_a_call"] > 2
        share = entry["bare_call_ms"]["median"] / entry["steps_a_call"]
        assert entry["beside_call_ms"] == pytest.approx(entry["step_ms"]["median"] - share)
    assert capsys.readouterr().out.count("\n") == 2 + len(cells)


@pytest.mark.slow
def test_a_repository_is_measured_with_its_own_networks(small_repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    options = ["--quick", "--own-networks", "--repository", str(small_repository), "--as", "small", "--out", str(out)]
    assert main(options) == 0
    run = json.loads(out.read_text())["small"]
    assert run["networks"] == "its own"
    assert [entry["most_steps_a_call"] for entry in run["records"]] == [1] * 4


def test_bare_calls_are_taken_out_of_what_the_server_counts() -> None:
    before, after = Done(10, 20, 12), Done(30, 60, 40)
    assert after.without(before, 5, rows=2, several=False) == Done(10, 40, 23)
    assert after.without(before, 5, rows=2, several=True) == Done(20, 30, 23)


def test_a_folder_that_is_no_repository_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--repository", str(ROOT / "docs")])
    assert "no mri_ldm/config.pbtxt" in capsys.readouterr().err


def test_help_is_quick() -> None:
    assert "--own-networks" in run_python("-m", "benchmarks.micro.loop", "--help").stdout
