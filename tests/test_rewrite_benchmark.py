"""The benchmark of the rewritten operations: the whole command on tiny networks."""

import json
from pathlib import Path

import pytest

from benchmarks.rewrite import BASELINE, main


def test_every_variant_in_every_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rewrite.json"
    assert main(["--weights", "small", "--rounds", "1", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    networks = record["networks"]
    assert set(networks) == {"unet", "vae_decoder"}
    for found in networks.values():
        assert {"ONNX Runtime", "OpenVINO"} <= set(found)
        for variants in found.values():
            assert len(variants) == 5
            assert variants[BASELINE]["faster_than_baseline"]["median"] == 1
    # 16 products of a transposed convolution stand for 36; the other two kinds compute as much as before.
    for counted in record["gflop"].values():
        assert counted["all"] == counted["transposed convolution"] < counted[BASELINE] == counted["one projection"]
    assert record["gflop_a_second"]["float32"] > 0
    assert "| vae_decoder | all |" in capsys.readouterr().out
