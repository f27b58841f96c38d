"""`python -m benchmarks.bulk`: the whole in small, and the page that shows the recorded run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bulk.__main__ import main
from benchmarks.tables.bulk import tables
from support.common import ROOT


@pytest.mark.slow
def test_the_whole_of_it_in_small(small_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--repository", str(small_repository), "--work", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bulk.json").read_text())
    rate = record["rate"]["result"]["contestants"]
    assert set(rate) == {"bare server", "webdataset"}
    assert all(times["n"] == 1 and times["median"] > 0 for times in rate.values())
    result = record["failover"]["result"]
    images = result["images"]
    assert result["read"] == {"webdataset": images, "nibabel": images, "pydicom": images}
    assert (result["dciodvfy"]["files"], result["dciodvfy"]["errors"]) == (images, 0)
    assert 0 < result["shards_before_the_kill"] < images / result["shard_size"]
    assert "\n".join(tables(record)) in capsys.readouterr().out


def test_the_page_shows_the_recorded_run() -> None:
    record = json.loads((ROOT / "benchmarks" / "bulk.json").read_text())
    page = (ROOT / "docs" / "bulk.md").read_text()
    assert "\n".join(tables(record)) in page
    assert f"`{record['rate']['command']}`" in page
    for section in ("rate", "failover"):
        assert "error" not in record[section]
