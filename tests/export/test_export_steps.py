"""`unet_steps` in repositories: when it is exported, where it is recorded, and a real tritonserver that serves it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from export import repository
from export.__main__ import main
from export.configs import STEPS_TEMPLATES, ConfigMismatch, check_configs, parse_config, profiles, write_steps_configs
from export.graphs import random_inputs, unet_steps
from export.onnx.run import cpu_session, feeds_of
from export.repository import Extras, RepositoryError, export_repository
from export.tensorrt.build import BuildOptions
from server.process import TritonServer
from support.serving import tensors
from training.files import sha256

TORCH = Extras(torch="fp32", with_onnx=False)


@pytest.mark.parametrize(
    ("extras", "steps"),
    [
        (Extras(), 1),
        (Extras(steps_per_call=4), 4),
        (Extras(onnx=("fp16",)), 5),
        (Extras(onnx=("fp16",), steps_per_call=1), 1),
        (Extras(torch="fp16"), 5),
        (TORCH, 5),
        (Extras(plan=BuildOptions("tensorrt_rtx", "fp16")), 5),
    ],
)
def test_when_a_repository_gets_several_steps(extras: Extras, steps: int) -> None:
    assert extras.steps() == steps


def test_steps_that_no_call_has() -> None:
    for steps in (0, 51):
        with pytest.raises(RepositoryError, match=rf"--steps-per-call is {steps}; it must be 1 to 50"):
            Extras(steps_per_call=steps)


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_configs_are_written_for_the_steps_of_the_export(tmp_path: Path, steps: int) -> None:
    write_steps_configs(tmp_path, steps)
    check_configs(unet_steps(steps), tmp_path)
    with pytest.raises(ConfigMismatch, match=rf"-input timesteps TYPE_INT32 \[{steps}\]"):
        check_configs(unet_steps(steps + 1), tmp_path)
    written, template = profiles(tmp_path), profiles(STEPS_TEMPLATES)
    assert written.keys() == template.keys()
    shapes = {"latent": [1, 64, 64], "estimate": [1, 64, 64], "earlier_estimate": [1, 64, 64]}
    shapes |= {"timesteps": [steps], "coefficients": [steps, 8]}
    for name in ("default", "mixed_gpus"):
        config, before = parse_config(written[name]), parse_config(template[name])
        for spec, old in zip(config.optimization.cuda.graph_spec, before.optimization.cuda.graph_spec, strict=True):
            assert (spec.batch_size, spec.graph_lower_bound.batch_size) == (
                old.batch_size,
                old.graph_lower_bound.batch_size,
            )
            bounds = [spec.graph_lower_bound] if spec.HasField("graph_lower_bound") else []
            for side in (spec, *bounds):
                assert {key: list(shape.dim) for key, shape in side.input.items()} == shapes
        for sample in config.model_warmup:
            assert {key: list(tensor.dims) for key, tensor in sample.inputs.items()} == shapes


def test_the_profile_torch_takes_any_steps_and_draws_noise(tmp_path: Path) -> None:
    write_steps_configs(tmp_path, 3)
    text = (tmp_path / "configs" / "cpu.pbtxt").read_text()
    torch = tmp_path / "configs" / "torch.pbtxt"
    torch.write_text(text)
    with pytest.raises(
        ConfigMismatch, match=r"(?s)torch\.pbtxt.*\+input seed TYPE_INT64 \[1\]\n\+input draw TYPE_INT32"
    ):
        check_configs(unet_steps(3), tmp_path)
    noise = '{ name: "seed" data_type: TYPE_INT64 dims: [ 1 ] }, { name: "draw" data_type: TYPE_INT32 dims: [ 1 ] }'
    torch.write_text(text.replace("[ 3", "[ -1").replace("[ -1, 8 ] }\n", f"[ -1, 8 ] }},\n{noise}\n"))
    check_configs(unet_steps(3), tmp_path)
    (tmp_path / "configs" / "cpu.pbtxt").write_text(torch.read_text())
    with pytest.raises(ConfigMismatch, match=r"cpu\.pbtxt"):
        check_configs(unet_steps(3), tmp_path)


@pytest.mark.slow
def test_what_a_repository_says_of_its_steps(steps_repository: Path, small_repository: Path) -> None:
    record = json.loads((steps_repository / "mri_ldm" / "1" / "model.json").read_text())
    assert record["steps_per_call"] == 5
    assert record["max_batch_size"] == {"unet": 64, "vae_decoder": 4, "unet_steps": 64}
    files = [(name, steps_repository / name / "1" / "model.onnx") for name in ("unet", "vae_decoder", "unet_steps")]
    digests = "".join(f"{name} {sha256(path)}\n" for name, path in files)
    assert record["digest"] == "sha256:" + hashlib.sha256(digests.encode()).hexdigest()
    manifest = json.loads((steps_repository / "manifest.json").read_text())
    parity = manifest["parity"]["unet_steps"]
    assert 0 < parity["relative_l2"] < parity["tolerance_relative_l2"] == 5e-5
    for name in ("model.onnx", "model.pt2"):
        assert manifest["sha256"][f"unet_steps/1/{name}"] == sha256(steps_repository / "unet_steps" / "1" / name)
    program = manifest["sha256"]["unet/1/model.pt2"]
    assert program == manifest["sha256"]["unet_steps/1/model.pt2"]
    assert not (small_repository / "unet_steps").exists()
    assert "steps_per_call" not in json.loads((small_repository / "mri_ldm" / "1" / "model.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "profile", [name for name in profiles(STEPS_TEMPLATES) if name not in ("default", "mixed_gpus")]
)
def test_every_profile_without_plans_is_there(steps_repository: Path, profile: str) -> None:
    assert main(["check", str(steps_repository), "--profile", profile]) == 0


@pytest.mark.slow
def test_the_preflight_knows_several_steps(
    steps_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(steps_repository, tmp_path / "repository")
    assert main(["check", str(folder), "--profile", "default"]) == 1
    assert "unet_steps/1/model.plan: missing, and profile 'default' serves it" in capsys.readouterr().err
    write_steps_configs(folder / "unet_steps", 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    for path in (folder / "unet_steps").rglob("*.pbtxt"):
        manifest["sha256"][str(path.relative_to(folder))] = sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["check", str(folder)]) == 1
    assert "model.json: steps_per_call is 5, but unet_steps has 4: export again" in capsys.readouterr().err


@pytest.mark.slow
def test_in_place_it_comes_and_goes(small_snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export never copies it from the source repository, and removes all of it if the new weights have none."""
    source = tmp_path / "source"
    shutil.copytree(
        repository.SOURCE, source, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "unet_steps")
    )
    monkeypatch.setattr(repository, "SOURCE", source)
    export_repository(small_snapshot, source, "small", extras=Extras(torch="fp32", with_onnx=False, steps_per_call=3))
    check_configs(unet_steps(3), source / "unet_steps")
    assert json.loads((source / "mri_ldm" / "1" / "model.json").read_text())["steps_per_call"] == 3
    assert main(["check", str(source)]) == 0
    without = Extras(torch="fp32", with_onnx=False, steps_per_call=1)
    export_repository(small_snapshot, tmp_path / "copy", "small", extras=without)
    assert not (tmp_path / "copy" / "unet_steps").exists()
    export_repository(small_snapshot, source, "small", extras=without)
    assert not (source / "unet_steps").exists()
    assert main(["check", str(source)]) == 0


@pytest.mark.slow
def test_the_command_for_a_repository_takes_plans_only(
    steps_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repository", str(steps_repository), "--tensorrt-rtx", "fp32", "--steps-per-call", "2"]) == 1
    assert "it takes plans only" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu", "openvino"])
def test_a_server_answers_what_onnx_runtime_computes(steps_repository: Path, profile: str) -> None:
    graph = unet_steps(5)
    feeds = feeds_of(graph, random_inputs(graph, rows=3, seed=7))
    names = [spec.name for spec in graph.outputs]
    expected = cpu_session(steps_repository / "unet_steps" / "1" / "model.onnx").run(names, feeds)
    with TritonServer(steps_repository, profile=profile) as server:
        server.probe()
        with triton.InferenceServerClient(server.grpc_url) as client:
            for wanted in (names, names[:2], names[2:]):
                outputs = [triton.InferRequestedOutput(name) for name in wanted]
                result = client.infer("unet_steps", tensors(**feeds), outputs=outputs, client_timeout=60)
                assert {output.name for output in result.get_response().outputs} == set(wanted)
                for name in wanted:
                    answer, reference = result.as_numpy(name), expected[names.index(name)]
                    if profile == "cpu":
                        np.testing.assert_array_equal(answer, reference)
                    else:  # other kernels
                        np.testing.assert_allclose(answer, reference, atol=1e-4 * np.abs(reference).max())
