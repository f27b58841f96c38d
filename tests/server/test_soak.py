"""A short soak, and the table of `make test-reliability`, which has the long one."""

import json
from pathlib import Path

import pytest

from reliability.__main__ import main, must_be_none, table
from reliability.soak import Soak, plot, soak, write_repository

REQUESTS = 1000
# MB between the second and the last quarter: the heap of tritonserver still spreads over its threads then, and stays at
# about 70 MB after the first thousand requests.
MOST_GROWTH = {"tritonserver": 60.0}
MOST_GROWTH_OF_A_MODEL = 4.0


@pytest.mark.slow
def test_a_short_soak_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    result = soak(write_repository(tmp_path / "repository"), REQUESTS)
    assert set(result.counts) <= {"images", "cancelled", "bad input told", "refused, queue full", "processes lost"}
    assert result.counts.total() == REQUESTS
    # A full queue is rarest: on a busy machine the six clients seldom ask at the same time.
    assert all(result.counts[kind] > 5 for kind in ("images", "cancelled", "bad input told", "refused, queue full"))
    assert result.counts["processes lost"] == 0
    models = {"mri_ldm_0_0", "mri_ldm_stream_0_0", "unet_0_0", "vae_decoder_0_0", "vae_decoder_tiny_0_0"}
    assert set(result.megabytes) == {"tritonserver", "/dev/shm", *models}
    for name, growth in result.growth().items():
        assert growth < MOST_GROWTH.get(name, MOST_GROWTH_OF_A_MODEL), (name, result.megabytes[name])
    assert plot(result, tmp_path / "soak.png").stat().st_size > 10_000


def test_a_leak_is_seen_and_a_warm_up_is_none() -> None:
    done = list(range(100))
    leak, warm_up = [20 + 0.5 * n for n in done], [min(60.0, 20.0 + 4 * n) for n in done]
    growth = Soak(requests=done, megabytes={"leak": leak, "warm-up": warm_up}).growth()
    assert growth == {"leak": 25.0, "warm-up": 0.0}


def test_the_table_says_what_must_not_be() -> None:
    counts = {"images": 12, "images wrong": 1, "requests lost: hung": 2, "slowest exit after the last row, s": 1}
    assert [must_be_none(name) for name in counts] == [False, True, True, False]
    assert table({"load": {"seconds": 3.2, "counts": counts}}).splitlines()[2:] == [
        "| load (3 s) | images | 12 |  |",
        "|  | images wrong | 1 | **wrong** |",
        "|  | requests lost: hung | 2 | **wrong** |",
        "|  | slowest exit after the last row, s | 1 |  |",
    ]


@pytest.mark.slow
def test_the_command_runs_a_scenario_and_writes_its_table(tmp_path: Path, capsys) -> None:
    record = tmp_path / "record.json"
    record.write_text('{"bad input": {}, "orderly stops": "as before"}')
    assert main(["--only", "bad input", "--amount", "0.005", "--out", str(tmp_path)]) == 0
    assert "Nothing lost, nothing wrong, nothing left." in capsys.readouterr().out
    assert "| inputs tried | 100 |" in (tmp_path / "table.md").read_text()
    kept = json.loads(record.read_text())
    assert list(kept) == ["orderly stops", "bad input"]
    assert kept["orderly stops"] == "as before"
    entry = kept["bad input"]
    assert (entry["amount"], entry["wrong"], entry["counts"]["inputs tried"]) == (0.005, 0, 100)
    assert {"processor", "cores", "date"} <= set(entry["machine"])
