"""Where a call goes on a CPU: the whole command on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from benchmarks.micro.cpu_path import BASELINE, SETTINGS, main

pytestmark = pytest.mark.slow


def test_settings_and_operators_of_both_networks(
    small_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cpu_path.json"
    assert main(["--repository", str(small_repository), "--rounds", "1", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["machine"]["cores"] > 0
    for network, calls in (("unet", 3), ("vae_decoder", 1)):
        result = record["networks"][network]
        assert result["settings"][BASELINE]["faster_than_baseline"]["median"] == 1
        assert all(len(values["seconds"]) == calls for values in result["settings"].values())
        assert result["settings"]["1 thread"]["threads"] == 1
        assert result["settings"][BASELINE]["threads"] >= 1
        graph = onnx.load(small_repository / network / "1" / "model.onnx").graph
        # No optimisation of ONNX Runtime's removes a convolution.
        convolutions = sum(node.op_type == "Conv" for node in graph.node)
        assert result["operators, as served"]["Conv"]["n"] == result["operators, 1 thread"]["Conv"]["n"] == convolutions
    assert set(record["networks"]["unet"]["settings"]) == set(SETTINGS)
    assert "| vae_decoder: operator |" in capsys.readouterr().out


def test_a_folder_without_networks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--repository", str(tmp_path)])
    assert "model.onnx is missing: give a model repository with ONNX files" in capsys.readouterr().err
