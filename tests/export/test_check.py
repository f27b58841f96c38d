"""The preflight, on repositories with one fault each; nothing in it runs a network, so the weights are a few bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from export.__main__ import main
from support.capabilities import openvino_bf16
from support.common import ROOT, processor_seconds, run_python
from support.light_repository import NETWORKS, Manifest, copy_light, write_manifest
from training.files import sha256

SERVER = ["--tensorrt", "10.13.2", "--capability", "9.0"]
STAMP = {
    "runtime": "tensorrt",
    "version": "10.13.2.6",
    "gpu": {"name": "NVIDIA H100 PCIe", "capability": "9.0"},
    "precision": "fp16",
    "profile": {"min": 1, "opt": 8, "max": 64},
    "options": {"version_compatible": False, "hardware": "none"},
    "parity": None,
    "parity_not_measured": "built by trtexec",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The committed repository with plans, as export would leave it."""
    folder = copy_light(tmp_path / "repository")
    plans = []
    for model in NETWORKS:
        (folder / model / "1" / "model.plan").write_text(f"model.plan of {model}")
        digest = sha256(folder / model / "1" / "model.fp16.onnx")
        plans.append({**STAMP, "model": model, "file": f"{model}/1/model.plan", "onnx_sha256": digest})
    write_manifest(folder, {"name": "light", "plans": plans})
    return folder


def replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def stamped(folder: Path, change: Callable[[Manifest], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["plans"][0])
    write_manifest(folder, manifest)


def problems(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The printed errors, one line each. The status is 0 if there are none, else 1."""
    status = main(["check", str(folder), *(options or SERVER)])
    errors = capsys.readouterr().err.splitlines()
    assert status == (1 if errors else 0)
    assert all(error.startswith("error: ") for error in errors)
    return errors


def test_the_committed_repository_passes_in_a_moment_and_without_torch() -> None:
    before = processor_seconds()
    code = (
        "import sys; from export.__main__ import main; "
        "status = main(['check', 'model_repository']); assert 'torch' not in sys.modules; sys.exit(status)"
    )
    result = run_python("-c", code)
    assert (result.returncode, result.stderr) == (0, "")
    assert "unet              default (tensorrt), cpu (onnxruntime)" in result.stdout
    assert "No plans" in result.stdout
    assert processor_seconds() - before < 5, "under one second is usual"


def test_a_repository_with_plans_for_this_machine_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(repository), *SERVER, "--profile", "default"]) == 0
    shown = capsys.readouterr().out
    assert "unet/1/model.plan: tensorrt 10.13.2.6, fp16, 1 to 64 rows, for NVIDIA H100 PCIe (9.0)" in shown
    assert "parity: built by trtexec" in shown


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("unet/1/model.plan", "unet/1/model.plan: changed since manifest.json was written"),
        ("vae_decoder/1/model.onnx", "vae_decoder/1/model.onnx: changed since manifest.json was written"),
        ("mri_ldm/1/mri_ldm/batcher.py", "mri_ldm/1/mri_ldm/batcher.py: changed since manifest.json was written"),
    ],
)
def test_tampered_files(repository: Path, capsys: pytest.CaptureFixture[str], file: str, what: str) -> None:
    with (repository / file).open("a") as changed:
        changed.write(" ")
    (error,) = problems(repository, capsys)
    assert what in error


def test_bf16_is_held_against_this_cpu(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The backend refuses to load on a CPU without bf16. The check says so before."""
    hint = '{ key: "HINT_BF16" value: { string_value: "YES" } },'
    replace(repository / "vae_decoder" / "configs" / "openvino.pbtxt", "parameters [", f"parameters [\n  {hint}")
    write_manifest(repository, json.loads((repository / "manifest.json").read_text()))
    reported = problems(repository, capsys, *SERVER, "--profile", "openvino")
    if openvino_bf16() == "native":
        assert not reported
    else:
        (error,) = reported
        assert "vae_decoder: profile 'openvino' asks for bf16 (HINT_BF16), which this CPU has not (FP32" in error
    replace(
        repository / "vae_decoder" / "configs" / "openvino.pbtxt", hint, hint + hint.replace("HINT", "ALLOW_EMULATED")
    )
    write_manifest(repository, json.loads((repository / "manifest.json").read_text()))
    assert not problems(repository, capsys, *SERVER, "--profile", "openvino")


def test_missing_and_unknown_files(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "unet" / "1" / "model.plan").rename(repository / "unet" / "1" / "other.plan")
    missing, unknown = problems(repository, capsys)
    assert "unet/1/model.plan: missing, but manifest.json lists it" in missing
    assert "unet/1/other.plan: not in manifest.json" in unknown


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            ["--tensorrt", "10.14.1", "--capability", "9.0"],
            "built by tensorrt 10.13.2.6, but it will be run by",
        ),
        (["--tensorrt", "10.13.2", "--capability", "8.9"], "built on NVIDIA H100 PCIe (9.0), but this machine has"),
    ],
)
def test_plans_of_another_machine(
    repository: Path, capsys: pytest.CaptureFixture[str], options: list[str], what: str
) -> None:
    errors = problems(repository, capsys, *options)
    assert len(errors) == 2
    assert all(what in error and "build it again" in error for error in errors)


@pytest.mark.parametrize(
    ("change", "options", "what"),
    [
        ({"onnx_sha256": "0" * 64}, SERVER, "built from another ONNX file than those beside it"),
        ({"profile": {"min": 1, "opt": 8, "max": 32}}, SERVER, "takes 1 to 32 rows (best 8), but Triton sends 1 to 64"),
        ({"profile": {"min": 2, "opt": 8, "max": 64}}, SERVER, "takes 2 to 64 rows"),
        ({"runtime": "tensorrt_rtx"}, SERVER, "this machine has only {'tensorrt': '10.13.2'}"),
        ({"options": {"version_compatible": True}}, ["--tensorrt", "10.9.0", "--capability", "9.0"], "10.13.2.6, but"),
        ({"options": {"version_compatible": True}}, ["--tensorrt", "11.0.0", "--capability", "9.0"], "10.13.2.6, but"),
        ({"options": {"hardware": "ampere_plus"}}, ["--tensorrt", "10.13.2", "--capability", "7.5"], "built on"),
    ],
)
def test_a_stamp_that_does_not_fit(
    repository: Path, capsys: pytest.CaptureFixture[str], change: Manifest, options: list[str], what: str
) -> None:
    stamped(repository, lambda stamp: stamp.update(change))
    errors = problems(repository, capsys, *options)
    assert any(error.startswith("error: unet/1/model.plan: ") and what in error for error in errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "server"),
    [({"version_compatible": True}, ["10.14.1", "9.0"]), ({"hardware": "ampere_plus"}, ["10.13.2", "12.0"])],
)
def test_compatible_plans_pass_elsewhere(
    repository: Path, capsys: pytest.CaptureFixture[str], options: Manifest, server: list[str]
) -> None:
    manifest = json.loads((repository / "manifest.json").read_text())
    for stamp in manifest["plans"]:
        stamp["options"] = options
    write_manifest(repository, manifest)
    assert problems(repository, capsys, "--tensorrt", server[0], "--capability", server[1]) == []


def test_plans_of_a_mixed_fleet_are_held_to_their_own_gpu(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def move(stamp: Manifest) -> None:
        stamp["file"] = "unet/1/model.sm90.plan"

    (repository / "unet" / "1" / "model.plan").rename(repository / "unet" / "1" / "model.sm90.plan")
    stamped(repository, move)
    assert problems(repository, capsys) == []
    ada = ["--tensorrt", "10.13.2", "--capability", "8.9", "--profile", "mixed_gpus"]
    errors = problems(repository, capsys, *ada)
    assert ["model.sm90.plan" in error for error in errors] == [False] * len(errors)
    assert any("unet/1/model.sm89.plan: missing, and profile 'mixed_gpus' serves it" in error for error in errors)


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        (
            "unet/configs/cpu.pbtxt",
            "TYPE_INT32",
            "TYPE_INT64",
            "has ['input timesteps TYPE_INT64 [1]'] where",
        ),
        ("unet/configs/cpu.pbtxt", "max_batch_size: 64", "max_batch_size: 32", "has ['max_batch_size 32']"),
        ("unet/config.pbtxt", "graph_spec", "graph_specs", 'has no field named "graph_specs"'),
        ("vae_decoder/configs/cpu.pbtxt", 'name: "vae', 'name: "vee', "name is 'vee_decoder', but the folder is"),
        ("mri_ldm/1/model.json", '"unet": 64', '"unet": 16', "unet takes 16 rows, but its config.pbtxt says 64"),
        (
            "mri_ldm/1/model.json",
            '"conditioning": "labels"',
            '"conditioning": "none"',
            "conditioning is none, but unet has an input condition: export again",
        ),
        ("mri_ldm/config.pbtxt", '"2"', '"8"', "decode_batch is '8', but vae_decoder takes 4 rows at most"),
    ],
)
def test_configs_that_drifted(
    repository: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, what: str
) -> None:
    """Also if somebody has changed the manifest to match."""
    replace(repository / file, old, new)
    write_manifest(repository, json.loads((repository / "manifest.json").read_text()))
    (error,) = problems(repository, capsys)
    assert what in error


def test_a_profile_that_nobody_has_and_a_plan_that_is_not_there(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (error,) = problems(repository, capsys, *SERVER, "--profile", "gpu")
    assert "no profile 'gpu', and Triton would use config.pbtxt instead: choose one of ['cpu', 'default'" in error
    committed = problems(ROOT / "model_repository", capsys, "--profile", "default")
    assert ["model.plan: missing, and profile 'default' serves it" in error for error in committed] == [True] * 3


def test_a_folder_that_is_no_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (error,) = problems(tmp_path / "none", capsys)
    assert error == f"error: {tmp_path / 'none'} is no exported repository: there is no such folder"
    (error,) = problems(tmp_path, capsys)
    assert "is no exported repository: manifest.json does not exist" in error
    (tmp_path / "manifest.json").write_text("{")
    (error,) = problems(tmp_path, capsys)
    assert f"{tmp_path / 'manifest.json'} is damaged: " in error
    (tmp_path / "manifest.json").write_text("{}")
    (error,) = problems(tmp_path, capsys)
    assert "is damaged (no entry 'sha256'): export again" in error
