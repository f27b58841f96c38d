"""Programs compiled by AOTInductor: what they compute, where they are refused, and a real server that serves them."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from export.__main__ import main
from export.configs import STEPS_PER_CALL
from export.graphs import GRAPHS, UNET, VAE_DECODER, Graph, random_inputs, with_steps
from export.processor import instructions
from export.torch.compiled import compiled_file
from server.process import TritonServer
from support.common import run_python
from support.serving import infer
from training.checkpoint import save_snapshot
from training.sample import generate

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def backend(torch_backend: SimpleNamespace) -> SimpleNamespace:
    return torch_backend


def program_of(graph: Graph, repository: Path) -> Path:
    return repository / graph.name / "1" / "model.pt2"


@pytest.mark.parametrize(("graph", "sizes"), [(UNET, (1, 3, 64)), (VAE_DECODER, (1, 3, 4, 9))], ids=["unet", "decoder"])
def test_a_package_computes_what_the_network_computes(graph, sizes, backend, compiled_repository, small_snapshot):
    """Nine rows are more than the decoder was compiled for."""
    served = backend.torch_program.Program(program_of(graph, compiled_repository), CPU)
    assert isinstance(served._module, backend.torch_compiled.Compiled)
    module = graph.build(small_snapshot).eval()
    for rows in sizes:
        inputs = random_inputs(graph, rows, seed=rows)
        with torch.inference_mode():
            expected = module(*inputs).numpy()
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}
        np.testing.assert_allclose(served(feeds), expected, atol=1e-5 * np.abs(expected).max())


def test_the_manifest_tells_how_a_package_was_made(compiled_repository, capsys) -> None:
    manifest = json.loads((compiled_repository / "manifest.json").read_text())
    packages = [record for record in manifest["programs"] if "device" in record]
    for graph, record in zip(GRAPHS, packages, strict=True):
        assert record["file"] == f"{graph.name}/1/model.compiled.pt2"
        assert (record["torch"], record["precision"]) == (torch.__version__, "fp32")
        assert record["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
        assert record["parity"]["relative_l2"] <= record["parity"]["tolerance_relative_l2"]
        assert record["file"] in manifest["sha256"]
    assert main(["check", str(compiled_repository), "--profile", "torch"]) == 0
    assert f"unet/1/model.compiled.pt2: torch {torch.__version__}, fp32, for " in capsys.readouterr().out


def with_record(program: Path, into: Path, **changes: Any) -> Path:
    """A copy of a program and of its package, whose record is changed. Returns the program."""
    shutil.copyfile(program, into / program.name)
    with zipfile.ZipFile(compiled_file(program)) as old, zipfile.ZipFile(into / "model.compiled.pt2", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("_metadata.json"):
                metadata = json.loads(content)
                metadata["record"] = json.dumps(json.loads(metadata["record"]) | changes)
                content = json.dumps(metadata).encode()
            new.writestr(info.filename, content)
    return into / program.name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"program_sha256": "0" * 64}, "it was compiled from another model.pt2"),
        ({"torch": "1.0.0"}, f"it was compiled by torch 1.0.0, and torch {torch.__version__} serves"),
        ({"device": "xpu"}, "it was compiled for xpu, and runs on cpu"),
        ({"machine": "vax"}, "it was compiled on vax, and this is "),
        ({"instructions": ["avx4096"]}, "it was compiled for a processor that has avx4096, too"),
    ],
)
def test_a_package_that_does_not_fit_leaves_the_program(
    changes, reason, backend, compiled_repository, tmp_path, caplog
) -> None:
    program = with_record(program_of(VAE_DECODER, compiled_repository), tmp_path, **changes)
    module = backend.torch_program.load_module(program, CPU)
    assert not isinstance(module, backend.torch_compiled.Compiled)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "torch_compiled"]
    assert f"{tmp_path}/model.compiled.pt2 is not used: {reason}" in line
    assert "--compile" in line


def test_a_package_for_another_gpu_does_not_fit(backend, compiled_repository, tmp_path, monkeypatch) -> None:
    program = program_of(VAE_DECODER, compiled_repository)
    record = backend.torch_compiled._read_record(compiled_file(program))
    record |= {"device": "cuda", "capability": [9, 0], "name": "NVIDIA H100"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    reason = backend.torch_compiled._unfit(record, program, torch.device("cuda", 0))
    assert reason == "it was compiled for NVIDIA H100 with compute capability 9.0, and this GPU has 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backend.torch_compiled._unfit(record, program, torch.device("cuda", 0)) is None


def test_files_of_others_are_not_loaded(backend, compiled_repository, tmp_path, caplog) -> None:
    """Whatever stands there under the name: a file that is no package, and a package that export has not written."""
    program = shutil.copyfile(program_of(VAE_DECODER, compiled_repository), tmp_path / "model.pt2")
    package = tmp_path / "model.compiled.pt2"
    package.write_bytes(b"no archive")
    assert backend.torch_compiled.load_compiled(program, CPU) is None
    shutil.copyfile(program, package)
    assert backend.torch_compiled.load_compiled(program, CPU) is None
    assert caplog.text.count("is not used: it cannot be loaded") == 2


def test_the_server_finds_the_instructions_that_a_package_names(backend, compiled_repository) -> None:
    record = backend.torch_compiled._read_record(compiled_file(program_of(VAE_DECODER, compiled_repository)))
    assert {"sse2", "asimd"} & set(record["instructions"])
    assert set(record["instructions"]) == instructions() < backend.torch_compiled._processor()


def test_several_steps_a_call_take_the_package_of_the_unet(backend, compiled_repository, caplog) -> None:
    caplog.set_level(logging.INFO)
    program = compiled_repository / "unet_steps" / "1" / "model.pt2"
    assert backend.torch_compiled.load_compiled(program, CPU) is not None
    assert f"{compiled_file(program)} is served: compiled for " in caplog.text


def test_a_server_serves_what_fits_and_says_so(compiled_repository, small_snapshot, tmp_path) -> None:
    """Here the UNet's package; the decoder's is of another program."""
    repository = tmp_path / "repository"
    shutil.copytree(compiled_repository, repository)
    with_record(program_of(VAE_DECODER, compiled_repository), repository / "vae_decoder" / "1", program_sha256="0" * 64)
    with TritonServer(repository, profile="torch") as server, triton.InferenceServerClient(server.grpc_url) as client:
        server.probe()
        served = infer(client, seed=[3, 4, 5])
        log = "\n".join(server.log_tail(1000))
    for model in ("unet", "unet_steps"):
        assert f"{model}/1/model.compiled.pt2 is served: compiled for " in log
    assert "vae_decoder/1/model.compiled.pt2 is not used: it was compiled from another model.pt2" in log
    images, latents = generate(small_snapshot, [3, 4, 5], steps=50, batch=3)
    np.testing.assert_allclose(served.as_numpy("final_latent"), latents, atol=1e-4 * np.abs(latents).max())
    np.testing.assert_allclose(served.as_numpy("image")[:, 0], images, atol=1e-4 * np.abs(images).max())


@pytest.mark.gpu
def test_a_gpu_captures_the_package(compiled_repository, small_snapshot) -> None:
    with TritonServer(compiled_repository, "torch") as server, triton.InferenceServerClient(server.grpc_url) as client:
        served = infer(client, seed=[3, 4, 5])
        log = "\n".join(server.log_tail(1000))
    assert log.count("model.compiled.pt2 is served: compiled for NVIDIA") == len(with_steps(STEPS_PER_CALL))
    assert "CUDA graphs for batches [1, 2, 4" in log
    _, latents = generate(small_snapshot, [3, 4, 5], steps=50, batch=3)
    np.testing.assert_allclose(served.as_numpy("final_latent"), latents, atol=1e-3)


def test_without_a_compiler_one_line_says_so(small_snapshot, tmp_path, monkeypatch) -> None:
    save_snapshot(small_snapshot, tmp_path / "snapshot")
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = ["--torch", "fp32", "--compile", "--no-onnx", "--into", str(tmp_path / "into")]
    done = run_python("-m", "export", "repository", str(tmp_path / "snapshot"), *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: --compile needs a C++ compiler")
    assert "apt-get install g++, or set CXX to one" in done.stderr
    assert not (tmp_path / "into").exists()


def test_compile_needs_torch(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["repository", str(tmp_path), "--compile"])
    assert "--compile compiles what --torch writes: give --torch PRECISION, too" in capsys.readouterr().err
