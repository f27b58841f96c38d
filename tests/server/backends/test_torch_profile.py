"""The profile "torch" from export to a real tritonserver, which serves it on the CPU here. With a GPU: `-m gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from export.__main__ import main
from export.compare import ParityError
from export.graphs import GRAPHS, UNET, VAE_DECODER
from export.torch.program import add_programs, compare_torch, export_torch
from server.process import TritonServer
from support.sampler_steps import ALL, SAMPLERS, Feeds, assert_close, feeds_of
from support.serving import PATIENCE, assert_images_of_pytorch_and_of_onnx, infer, tensors
from training.checkpoint import save_snapshot
from training.sample import generate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(steps_repository: Path) -> Iterator[TritonServer]:
    with TritonServer(steps_repository, profile="torch") as server:
        server.probe()
        yield server


def test_the_served_image_is_that_of_pytorch_and_of_the_cpu_profile(server, small_snapshot, raw) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        assert_images_of_pytorch_and_of_onnx(client, raw, small_snapshot)


def test_without_a_gpu_the_cpu_serves_and_the_log_says_so(server) -> None:
    """KIND_AUTO in the config: Triton chooses."""
    lines = [line for line in server.log_tail(1000) if "torch.export model" in line]
    assert len(lines) == 3
    if not torch.cuda.is_available():
        assert all(f"fp32, written by torch {torch.__version__}, runs on cpu" in line for line in lines)
        assert all("CUDA graphs for batches none" in line for line in lines)


def ask_steps(server: TritonServer, feeds: Feeds, *asked: str) -> Feeds:
    with triton.InferenceServerClient(server.grpc_url) as client:
        outputs = [triton.InferRequestedOutput(name) for name in asked]
        result = client.infer("unet_steps", tensors(**feeds), outputs=outputs, client_timeout=PATIENCE)
    assert {output.name for output in result.get_response().outputs} == set(asked)
    return {name: result.as_numpy(name) for name in asked}


def test_several_steps_in_a_call_are_served(server, torch_repository, torch_backend) -> None:
    """As in process, for any number of them, and with the outputs that the request names."""
    steps = torch_backend.torch_steps.Steps(torch_repository / "unet" / "1" / "model.pt2", torch.device("cpu"))
    for count, asked in ((1, ["next_latent"]), (4, ALL), (7, ["estimates"])):
        feeds = feeds_of(*SAMPLERS, count=count)
        assert_close(ask_steps(server, feeds, *asked), steps.run(asked, feeds), 1e-4)


def test_a_call_that_is_refused_says_why(server) -> None:
    feeds = {**feeds_of("ddim", count=2), "draw": np.array([[-1]], np.int32)}
    with pytest.raises(triton.InferenceServerException, match="draw is -1; it must be 0 or more") as refusal:
        ask_steps(server, feeds, *ALL)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_manifest_tells_how_a_program_was_made(torch_repository) -> None:
    manifest = json.loads((torch_repository / "manifest.json").read_text())
    for graph, record in zip(GRAPHS, manifest["programs"], strict=True):
        assert (record["file"], record["precision"]) == (f"{graph.name}/1/model.pt2", "fp32")
        assert record["torch"] == torch.__version__
        assert record["parity"]["relative_l2"] <= record["parity"]["tolerance_relative_l2"]
        assert record["file"] in manifest["sha256"]
    assert not list(torch_repository.rglob("*.onnx"))


def test_the_preflight_knows_programs(torch_repository, capsys) -> None:
    main(["check", str(torch_repository), "--profile", "torch"])
    checked = capsys.readouterr().out
    assert f"unet/1/model.pt2: torch {torch.__version__}, fp32" in checked
    assert "there are the files of these profiles: torch." in checked
    assert main(["check", str(torch_repository), "--profile", "cpu"]) == 1
    assert "unet/1/model.onnx: missing, and profile 'cpu' serves it" in capsys.readouterr().err


def test_parity_finds_other_weights(small_snapshot, torch_repository) -> None:
    module = VAE_DECODER.build(small_snapshot)
    with torch.no_grad():
        next(module.autoencoder.decoder.parameters()).mul_(1.01)
    with pytest.raises(ParityError, match=r"vae_decoder: model\.pt2 differs from float32"):
        compare_torch(VAE_DECODER, module, torch_repository / "vae_decoder" / "1" / "model.pt2", "fp32")


def test_a_short_training_is_exported_too(small_snapshot, tmp_path) -> None:
    """Its table has as many rows as random timesteps need, by which a program is held to the network."""
    schedule = replace(small_snapshot.config.noise_schedule, num_train_timesteps=40)
    snapshot = replace(small_snapshot, config=replace(small_snapshot.config, noise_schedule=schedule))
    assert len(add_programs(snapshot, tmp_path, "fp32")) == len(GRAPHS)


def test_reduced_precision_passes_its_own_gate_alone(small_snapshot, tmp_path) -> None:
    module = UNET.build(small_snapshot)
    export_torch(UNET, module, tmp_path / "model.pt2", "bf16")
    assert compare_torch(UNET, module, tmp_path / "model.pt2", "bf16").relative_l2 > 1e-4
    with pytest.raises(ParityError, match="allowed for fp32"):
        compare_torch(UNET, module, tmp_path / "model.pt2", "fp32")


@pytest.mark.gpu
def test_a_gpu_serves_what_pytorch_computes(server, small_snapshot) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        served = infer(client, seed=[3, 4, 5])
    assert any("CUDA graphs for batches [1, 2, 4" in line for line in server.log_tail(1000))
    _, latents = generate(small_snapshot, [3, 4, 5], steps=50, batch=3)
    np.testing.assert_allclose(served.as_numpy("final_latent"), latents, atol=1e-3)


def test_the_command_refuses_contradictions(small_snapshot, tmp_path: Path, capsys) -> None:
    save_snapshot(small_snapshot, tmp_path / "snapshot")
    assert main(["repository", str(tmp_path / "snapshot"), "--no-onnx", "--into", str(tmp_path / "into")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--no-onnx writes files for the profile torch only" in error
    assert not (tmp_path / "into").exists()
