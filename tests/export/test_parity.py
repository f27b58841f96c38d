"""The parity command: every runtime of a repository against PyTorch, whole images included."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.__main__ import main
from export.graphs import UNET, VAE_DECODER
from export.parity import candidates, images
from training.checkpoint import Snapshot, save_snapshot
from training.sample import generate

pytestmark = pytest.mark.slow

SHORT = ["--seeds", "3", "--steps", "3", "--batch", "2"]


@pytest.fixture(scope="module")
def snapshot(small_snapshot, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parity") / "snapshot"
    save_snapshot(small_snapshot, folder)
    return folder


def test_a_table_and_a_record(snapshot, small_repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(snapshot), str(small_repository), *SHORT, "--out", str(tmp_path / "parity.json")]) == 0
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["machine"]["cores"] > 0
    assert record["machine"]["versions"]["torch"] == torch.__version__
    full, openvino, half = record["results"]
    assert (full["precision"], openvino["precision"], half["precision"]) == ("fp32", "fp32", "fp16")
    assert openvino["runtime"].startswith("OpenVINO 20")
    assert openvino["images"]["psnr_min"] > 80
    assert full["images"]["psnr_min"] > 80 > half["images"]["psnr_min"] > 30
    assert full["images"]["ssim_min"] > half["images"]["ssim_min"] > 0.99
    assert full["unet"]["relative_l2"] < 5e-5 < half["unet"]["relative_l2"] < 5e-3
    assert f"| {full['runtime']} | fp32 | {full['unet']['relative_l2']:.1e} |" in capsys.readouterr().out


def test_images_are_those_of_the_reference_loop(small_snapshot) -> None:
    modules = [graph.build(small_snapshot).eval() for graph in (UNET, VAE_DECODER)]
    bar = parity_bar()
    with torch.no_grad():
        pixels = images.generate(candidates.in_torch(*modules, "fp32"), small_snapshot, [5, 6], 3, 2, bar)
    expected, _ = generate(small_snapshot, [5, 6], steps=3, batch=2)
    np.testing.assert_allclose(pixels[:, 0].numpy(), expected, atol=1e-6)
    assert bar.n == 6


def parity_bar():
    from tqdm import tqdm

    return tqdm(disable=False, leave=False)


def test_other_weights_fail(small_snapshot, small_repository, tmp_path: Path, capsys) -> None:
    """The repository of an older run, with today's snapshot."""
    unet = dict(small_snapshot.unet)
    unet["conv_in.conv.weight"] = unet["conv_in.conv.weight"] * 1.05
    save_snapshot(Snapshot(small_snapshot.config, small_snapshot.autoencoder, unet, 0.8), tmp_path / "snapshot")
    assert main(["parity", str(tmp_path / "snapshot"), str(small_repository), *SHORT]) == 1
    errors = capsys.readouterr().err
    assert "fp32: unet: relative L2" in errors
    assert "fp32: vae_decoder" not in errors


def test_a_folder_that_is_no_repository(snapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(snapshot), str(tmp_path)]) == 1
    assert "is no exported repository" in capsys.readouterr().err
