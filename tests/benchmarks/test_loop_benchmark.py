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
    cells = [(each["most_steps_a_call"], each["rows"], each["sampler"]) for each in records]
    assert cells == [(most, rows, sampler) for most in (1, 5) for rows in (1, 2) for sampler in ("ddim", "ddpm")]
    for each in records:
        assert each["row_steps"] == 20 * 2 * each["rows"]
        assert each["step_ms"]["n"] == each["bare_call_ms"]["n"] == 2
        most = each["most_steps_a_call"]
        assert 1 <= each["steps_a_call"] <= most
        assert 1 <= each["rows_a_call"] <= each["rows"]
        if most == 1:
            assert each["calls"] * each["rows_a_call"] == each["row_steps"]
        else:
            assert each["steps_a_call"] > 2
        share = each["bare_call_ms"]["median"] / each["steps_a_call"]
        assert each["beside_call_ms"] == pytest.approx(each["step_ms"]["median"] - share)
    assert capsys.readouterr().out.count("\n") == 2 + len(cells)


@pytest.mark.slow
def test_a_repository_is_measured_with_its_own_networks(small_repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    options = ["--quick", "--own-networks", "--repository", str(small_repository), "--as", "small", "--out", str(out)]
    assert main(options) == 0
    run = json.loads(out.read_text())["small"]
    assert run["networks"] == "its own"
    assert [each["most_steps_a_call"] for each in run["records"]] == [1] * 4


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
