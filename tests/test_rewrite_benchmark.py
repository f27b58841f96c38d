"""The benchmark of the rewritten operations: the whole command on tiny networks."""

import json
from pathlib import Path

import pytest

from benchmarks.rewrite import BASELINE, main


def test_every_variant_in_every_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rewrite.json"
    assert main(["--weights", "small", "--rounds", "1", "--out", str(out)]) == 0
    networks = json.loads(out.read_text())["networks"]
    assert set(networks) == {"unet", "vae_decoder"}
    for found in networks.values():
        assert {"ONNX Runtime", "OpenVINO"} <= set(found)
        for variants in found.values():
            assert len(variants) == 5
            assert variants[BASELINE]["faster_than_baseline"]["median"] == 1
    assert "| vae_decoder | all |" in capsys.readouterr().out
