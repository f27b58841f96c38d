"""The benchmark of the rewritten operations, on tiny networks: what it counts, what it times, what it prints."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.harness.operations import gflop
from benchmarks.harness.weights import load_weights
from benchmarks.micro.rewrite import BASELINE, _variants, main, measure, peaks
from benchmarks.tables.micro import operations
from export.graphs import GRAPHS, VAE_DECODER, Graph
from export.rewrite import rewritten
from support.capabilities import openvino_bf16
from support.common import ROOT


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_a_transposed_convolution_takes_fewer_operations_and_the_rest_as_many(graph: Graph, tmp_path: Path) -> None:
    module = graph.build(load_weights("small", tmp_path))
    counted = {name: gflop(graph, rewritten(module, layers)) for name, layers in _variants().items()}
    assert counted["all"] == counted["transposed convolution"] < counted[BASELINE] == counted["one projection"]
    assert counted["normalisation by channel"] == counted[BASELINE]


def test_operations_are_multiplications_and_additions() -> None:
    """Two for each weight and pixel of a convolution, and for each two of 64 tokens of 64 numbers, twice."""

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            attended = torch.nn.functional.scaled_dot_product_attention(latent, latent, latent)
            return self.convolution(attended)

    assert gflop(VAE_DECODER, Both()) == pytest.approx((2 * 64 * 64 * 9 * 4 + 2 * 2 * 64 * 64 * 64) / 1e9)


@pytest.mark.slow
def test_every_runtime_is_timed_and_told(small_repository: Path) -> None:
    path = small_repository / "vae_decoder" / "1" / "model.onnx"
    result = measure(VAE_DECODER, {BASELINE: path, "all": path}, rounds=2)
    has_bf16 = openvino_bf16() == "native"
    assert set(result) == {"ONNX Runtime", "OpenVINO"} | ({"OpenVINO, bf16"} if has_bf16 else set())
    for variants in result.values():
        assert variants[BASELINE]["faster_than_baseline"]["median"] == 1
        assert len(variants["all"]["seconds"]) == 2
    assert "| vae_decoder | all |" in "\n".join(operations({"vae_decoder": result}))
    assert set(peaks(1, channels=4, side=16)) == {"float32"} | ({"bf16"} if has_bf16 else set())


def test_the_page_shows_the_recorded_run() -> None:
    record = json.loads((ROOT / "benchmarks" / "rewrite-bundle.json").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert "\n".join(operations(record["networks"])) in page
    for name, speed in record["gflop_a_second"].items():
        assert f"{speed:.0f}" in page, name
    for variant in (BASELINE, "all"):
        unet, decoder = (record["gflop"][graph.name][variant] for graph in GRAPHS)
        assert f"{50 * unet + decoder:.0f}" in page


def test_help_says_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--weights" in capsys.readouterr().out
