"""Plans: real engines by TensorRT-RTX, which parses and builds without a GPU; a failed plan is not placed.

Engines run on a GPU only. Where the gate is tested here, ONNX Runtime stands in for them.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
import torch
from onnx import TensorProto, helper

from export.__main__ import main
from export.compare import ParityError
from export.graphs import GRAPHS, UNET, VAE_DECODER, unet_steps
from export.onnx.run import cpu_session, run_all
from export.onnx.unroll import unroll
from export.onnx.write import export_onnx
from export.precision import DTYPES, reduced_precision
from export.repository import Extras, RepositoryError, add_to_repository, export_repository
from export.tensorrt import plans
from export.tensorrt.build import BuildOptions, Plan, PlanError, build_plan
from support.common import ROOT
from training.files import sha256

pytestmark = pytest.mark.slow

RTX = BuildOptions("tensorrt_rtx", "fp16")


@pytest.fixture(scope="module")
def built(small_repository, tmp_path_factory) -> Path:
    """A copy of the small repository with fp16 plans."""
    folder = shutil.copytree(small_repository, tmp_path_factory.mktemp("plans") / "repository")
    add_to_repository(folder, replace(RTX, optimization_level=0))
    return folder


@pytest.fixture
def repository(small_repository, tmp_path: Path) -> Path:
    """A copy of the small repository."""
    return shutil.copytree(small_repository, tmp_path / "repository")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_a_real_engine_of_each_network_of_the_demo_weights_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(ROOT / "model_repository", tmp_path / "repository")
    assert main(["repository", str(folder), "--tensorrt-rtx", "fp32", "--optimization-level", "0"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "input  latent FLOAT [-1, 1, 64, 64]  min [1, 1, 64, 64]  opt [8, 1, 64, 64]  max [64, 1, 64, 64]",
        "input  timesteps INT32 [-1, 1]  min [1, 1]  opt [8, 1]  max [64, 1]",
        "output pred FLOAT [-1, 1, 64, 64]",
        "input  latent FLOAT [-1, 1, 64, 64]  min [1, 1, 64, 64]  opt [4, 1, 64, 64]  max [4, 1, 64, 64]",
        "output image FLOAT [-1, 1, 256, 256]",
    ):
        assert f"  {line}\n" in printed
    for graph in GRAPHS:
        version = folder / graph.name / "1"
        assert (version / "model.plan").stat().st_size > (version / "model.onnx").stat().st_size
    assert main(["check", str(folder)]) == 0


def test_a_real_engine_of_several_steps_of_the_demo_weights(tmp_path: Path) -> None:
    """At the lowest optimization level; the default one takes TensorRT-RTX minutes."""
    unroll(ROOT / "model_repository" / "unet" / "1" / "model.onnx", unet_steps(5, labels=True), tmp_path / "model.onnx")
    options = BuildOptions("tensorrt_rtx", "fp32", optimization_level=0)
    plan = build_plan(unet_steps(5, labels=True), tmp_path / "model.onnx", options)
    assert [str(tensor) for tensor in plan.tensors] == [
        "input  latent FLOAT [-1, 1, 64, 64]  min [1, 1, 64, 64]  opt [8, 1, 64, 64]  max [64, 1, 64, 64]",
        "input  condition FLOAT [-1, 4, 64, 64]  min [1, 4, 64, 64]  opt [8, 4, 64, 64]  max [64, 4, 64, 64]",
        "input  estimate FLOAT [-1, 1, 64, 64]  min [1, 1, 64, 64]  opt [8, 1, 64, 64]  max [64, 1, 64, 64]",
        "input  earlier_estimate FLOAT [-1, 1, 64, 64]  min [1, 1, 64, 64]  opt [8, 1, 64, 64]  max [64, 1, 64, 64]",
        "input  timesteps INT32 [-1, 5]  min [1, 5]  opt [8, 5]  max [64, 5]",
        "input  coefficients FLOAT [-1, 5, 8]  min [1, 5, 8]  opt [8, 5, 8]  max [64, 5, 8]",
        "output next_latent FLOAT [-1, 1, 64, 64]",
        "output next_estimate FLOAT [-1, 1, 64, 64]",
        "output next_earlier_estimate FLOAT [-1, 1, 64, 64]",
        "output estimates FLOAT [-1, 5, 1, 64, 64]",
    ]
    weights = (tmp_path / "model.onnx").stat().st_size
    assert weights < memoryview(plan.content).nbytes < 3 * weights, (
        "each step has its kernels, and all the same weights"
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_real_engines_of_several_steps_in_reduced_precision(small_snapshot, tmp_path: Path, precision) -> None:
    network = reduced_precision(UNET.build(small_snapshot), DTYPES[precision])
    export_onnx(UNET, network, tmp_path / "unet.onnx")
    unroll(tmp_path / "unet.onnx", unet_steps(2), tmp_path / "model.onnx")
    options = BuildOptions("tensorrt_rtx", precision, optimization_level=0)
    assert len(build_plan(unet_steps(2), tmp_path / "model.onnx", options).tensors) == 9
    with pytest.raises(PlanError, match=r"is not unet_steps: it has .*, the record says"):
        build_plan(unet_steps(3), tmp_path / "model.onnx", options)


def test_plans_of_a_repository_with_several_steps(steps_repository, tmp_path: Path) -> None:
    folder = shutil.copytree(steps_repository, tmp_path / "repository")
    add_to_repository(folder, BuildOptions("tensorrt_rtx", "fp32", optimization_level=0))
    stamp = json.loads((folder / "manifest.json").read_text())["plans"][-1]
    assert (stamp["model"], stamp["file"]) == ("unet_steps", "unet_steps/1/model.plan")
    assert stamp["onnx_sha256"] == sha256(folder / "unet_steps" / "1" / "model.onnx")
    assert main(["check", str(folder), "--profile", "default"]) == 0


@pytest.mark.parametrize("wrong", ["next_latent", "next_estimate", "next_earlier_estimate", "estimates"])
def test_the_gate_holds_every_output(steps_repository, wrong: str) -> None:
    graph = replace(unet_steps(5), opt_batch_size=2, max_batch_size=2)
    path = steps_repository / "unet_steps" / "1" / "model.onnx"
    session = cpu_session(path)

    def run(inputs):
        outputs = run_all(graph, session, inputs)
        return [
            array * (1.001 if spec.name == wrong else 1) for spec, array in zip(graph.outputs, outputs, strict=True)
        ]

    with pytest.raises(ParityError, match=rf"unet_steps: the plan, 1 rows, {wrong} differs from float32 by 1\.0\de-03"):
        plans.require_plan_parity(graph, path, run, "fp32")
    assert plans.require_plan_parity(graph, path, lambda inputs: run_all(graph, session, inputs), "fp32").max_abs == 0


def test_plans_are_stamped(built) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert [stamp["model"] for stamp in manifest["plans"]] == ["unet", "vae_decoder", "vae_decoder_tiny"]
    unet = manifest["plans"][0]
    reason = unet.pop("parity_not_measured")
    assert "no GPU" in reason
    assert unet == {
        "model": "unet",
        "file": "unet/1/model.plan",
        "runtime": "tensorrt_rtx",
        "version": tensorrt_rtx.__version__,
        "gpu": None,
        "precision": "fp16",
        "onnx_sha256": sha256(built / "unet" / "1" / "model.fp16.onnx"),
        "profile": {"min": 1, "opt": 8, "max": 64},
        "options": {"optimization_level": 0, "version_compatible": False, "hardware": "none"},
        "parity": None,
    }
    for name, digest in manifest["sha256"].items():
        assert sha256(built / name) == digest


def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    shape = ["batch", 1, 64, 64]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("latent", "image"))
    node = helper.make_node("Mystery", ["latent"], ["image"], name="the_odd_one", domain="example.org")
    graph = helper.make_graph([node], "odd", [x], [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("example.org", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "odd.onnx")
    with pytest.raises(PlanError, match=r"(?s)odd\.onnx: TensorRT .* cannot parse it.*the_odd_one.*Mystery"):
        build_plan(VAE_DECODER, tmp_path / "odd.onnx", RTX)


def test_a_graph_that_is_not_the_record_is_refused(small_repository) -> None:
    with pytest.raises(PlanError, match=r"is not unet: it has .*'image'.*, the record says .*'pred'"):
        build_plan(UNET, small_repository / "vae_decoder" / "1" / "model.onnx", RTX)


def engines(monkeypatch: pytest.MonkeyPatch, built: Path, computes: Path, error: float) -> None:
    """Plans that are already built, run by ONNX Runtime on the fp16 graphs of `computes`, with a relative error."""

    def run(graph, runtime, content, version_compatible):
        session = cpu_session(computes / graph.name / "1" / "model.fp16.onnx")
        return lambda inputs: [output * (1 + error) for output in run_all(graph, session, inputs)]

    def build(graph, path, options):
        return Plan((built / graph.name / "1" / "model.plan").read_bytes(), (), tensorrt_rtx.__version__)

    monkeypatch.setattr(plans, "Engine", run)
    monkeypatch.setattr(plans, "build_plan", build)


def test_a_plan_that_fails_the_gate_leaves_nothing(built, repository, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(repository)
    engines(monkeypatch, built, repository, error=0.01)
    with pytest.raises(ParityError, match=r"unet: the plan, 1 rows, differs from float32 by 1\.\d+e-02"):
        add_to_repository(repository, RTX)
    assert contents(repository) == before


def test_a_plan_that_passes_is_placed_with_its_parity(built, repository, monkeypatch: pytest.MonkeyPatch) -> None:
    engines(monkeypatch, built, repository, error=0.0)
    small = tuple(replace(graph, opt_batch_size=2, max_batch_size=3) for graph in GRAPHS)
    stamps = plans.add_plans(repository, RTX, graphs=small)
    for stamp in stamps:
        assert stamp["parity"]["relative_l2"] < stamp["parity"]["tolerance_relative_l2"] == 5e-3
        assert "parity_not_measured" not in stamp
        assert (repository / stamp["file"]).read_bytes() == (built / stamp["file"]).read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "fp32"])
def test_plans_of_this_gpu_pass_the_gate(small_snapshot, tmp_path: Path, precision) -> None:
    options = BuildOptions("tensorrt", precision, optimization_level=0, timing_cache=tmp_path / "cache")
    manifest = export_repository(small_snapshot, tmp_path / "repository", "small", extras=Extras(plan=options))
    for stamp in manifest["plans"]:
        assert stamp["parity"]["relative_l2"] < stamp["parity"]["tolerance_relative_l2"]
        assert stamp["gpu"]["name"] == torch.cuda.get_device_name()
    assert (tmp_path / "cache").stat().st_size


def test_onnx_files_that_are_not_the_manifests_are_refused(repository) -> None:
    shutil.copyfile(repository / "unet" / "1" / "model.onnx", repository / "unet" / "1" / "model.fp16.onnx")
    with pytest.raises(RepositoryError, match=r"model\.fp16\.onnx is not the file that manifest\.json describes"):
        add_to_repository(repository, RTX)
    with pytest.raises(PlanError, match="export the weights with --onnx bf16 first"):
        add_to_repository(repository, replace(RTX, precision="bf16"))


def test_without_a_gpu_tensorrt_says_what_to_do(
    repository, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = contents(repository)
    assert main(["repository", str(repository), "--tensorrt", "fp16"]) == 1
    message = capsys.readouterr().err
    assert "trtexec" in message
    assert "--tensorrt-rtx builds without a GPU" in message
    assert contents(repository) == before


def test_options_that_make_no_sense(repository, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--tensorrt-rtx", "fp16", "--monai-layers"], ["--tensorrt-rtx", "fp16", "--no-onnx"]):
        assert main(["repository", str(repository), *more]) == 1
        assert "it takes plans only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["repository", str(repository), "--tensorrt-rtx", "fp16", "--version-compatible"])
    assert "are for --tensorrt" in capsys.readouterr().err
