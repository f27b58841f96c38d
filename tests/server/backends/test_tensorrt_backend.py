"""The python-based TensorRT backend without a GPU: stand-ins that keep the rules of CUDA and TensorRT where those would
have to run, the real packages and a real tritonserver where they say what a machine lacks. See test_tensorrt_gpu too.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from export.configs import parse_config
from server.errors import ServerError
from server.process import TritonServer
from support import gpu_stand_in
from support.common import ROOT
from support.gpu_stand_in import Request, expected, feeds

BACKEND = ROOT / "server" / "backends" / "tensorrt"
TENSORS = """
input [ { name: "latent" data_type: TYPE_FP32 dims: [4, 4] }, { name: "timesteps" data_type: TYPE_INT32 dims: [1] } ]
output [ { name: "pred" data_type: TYPE_FP32 dims: [4, 4] } ]
"""
CONFIG: dict[str, Any] = {
    "name": "toy",
    "max_batch_size": 64,
    "default_model_filename": "model.plan",
    "input": [
        {"name": "latent", "data_type": "TYPE_FP32", "dims": ["4", "4"]},
        {"name": "timesteps", "data_type": "TYPE_INT32", "dims": ["1"]},
    ],
    "output": [{"name": "pred", "data_type": "TYPE_FP32", "dims": ["4", "4"]}],
    "optimization": {
        "cuda": {
            "graphs": True,
            "graph_spec": [
                {"batch_size": 1, "input": {}},
                {"batch_size": 4, "input": {}, "graph_lower_bound": {"batch_size": 2, "input": {}}},
                {"batch_size": 16, "input": {}, "graph_lower_bound": {"batch_size": 9, "input": {}}},
            ],
        }
    },
}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the backend, imported as the stub imports them: by their bare names."""
    monkeypatch.syspath_prepend(BACKEND)
    names = ("cuda_device", "plan_engine", "plan_loading")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        del sys.modules[name]


@pytest.fixture
def instance(tmp_path: Path) -> dict[str, str]:
    """What Triton tells an instance on GPU 0 of a model with a plan."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").write_bytes(gpu_stand_in.plan())
    return {
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_instance_kind": "GPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> gpu_stand_in.Cuda:
    """A stand-in GPU with TensorRT 10.13.2.6 and no TensorRT-RTX."""
    cuda = gpu_stand_in.Cuda()
    monkeypatch.setitem(sys.modules, "tensorrt", gpu_stand_in.TensorRT(cuda))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda


def no_warning(message: str) -> None:
    raise AssertionError(message)


def test_every_batch_is_right_and_those_with_a_graph_are_replayed(
    backend: SimpleNamespace, cuda: gpu_stand_in.Cuda, instance: dict[str, str]
) -> None:
    engine = backend.plan_loading.load(CONFIG, instance, no_warning)
    assert list(engine.graphs) == [1, 4, 16]
    assert cuda.launches == 0
    order = np.random.default_rng(0).permutation(np.arange(1, 65)).tolist()
    for number, rows in enumerate(order, 1):
        before, eager = cuda.launches, len(engine.context.runs)
        given = feeds(rows)
        np.testing.assert_array_equal(engine.run(["pred"], given)["pred"], expected(given))
        replayed = rows in (1, 2, 3, 4) or 9 <= rows <= 16
        assert (cuda.launches - before, len(engine.context.runs) - eager) == ((1, 0) if replayed else (0, 1)), number
        if not replayed:
            assert engine.context.runs[-1] == rows  # as many as there are: none is padded in vain


def test_answers_outlive_the_next_batch(
    backend: SimpleNamespace, cuda: gpu_stand_in.Cuda, instance: dict[str, str]
) -> None:
    engine = backend.plan_loading.load(CONFIG, instance, no_warning)
    first, second = feeds(2), feeds(3)
    answer = engine.run(["pred"], first)["pred"]
    engine.run(["pred"], second)
    np.testing.assert_array_equal(answer, expected(first))
    assert engine.run([], second) == {}
    with pytest.raises(ValueError, match="65 rows; the plan takes 1 to 64"):
        engine.run(["pred"], feeds(65))


@pytest.fixture
def model(
    backend: SimpleNamespace, cuda: gpu_stand_in.Cuda, instance: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The model of the backend, with what stands in for Triton's stub."""
    stub = SimpleNamespace(
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda tensors, error=None: error or dict(tensors),
        TritonError=type("TritonError", (Exception,), {"INTERNAL": 13}),
        Logger=SimpleNamespace(log_info=lambda text: None, log_warn=no_warning),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    model = importlib.import_module("model").TritonPythonModel()
    monkeypatch.delitem(sys.modules, "model")
    model.initialize({**instance, "model_config": json.dumps(CONFIG)})
    return model


def test_requests_share_a_batch_and_get_their_own_rows(model: Any, cuda: gpu_stand_in.Cuda) -> None:
    requests = [Request(2, "pred"), Request(1), Request(9, "pred")]
    first, second, third = model.execute(requests)
    np.testing.assert_array_equal(first["pred"], expected(requests[0].given))
    assert second == {}
    np.testing.assert_array_equal(third["pred"], expected(requests[2].given))
    assert cuda.launches == 1


def test_requests_get_those_of_several_outputs_that_they_ask_for(
    backend: SimpleNamespace, cuda: gpu_stand_in.Cuda, instance: dict[str, str]
) -> None:
    plan = gpu_stand_in.plan(both=("FLOAT", [-1, 2, 4, 4]))
    Path(instance["model_repository"], "1", "model.plan").write_bytes(plan)
    outputs = [*CONFIG["output"], {"name": "both", "data_type": "TYPE_FP32", "dims": ["2", "4", "4"]}]
    engine = backend.plan_loading.load({**CONFIG, "output": outputs}, instance, no_warning)
    for rows in (3, 7):  # in a graph, and without one
        given = feeds(rows)
        both = np.stack([given["latent"], expected(given)], axis=1)
        for names in (["pred"], ["both"], ["both", "pred"]):
            answer = engine.run(names, given)
            assert list(answer) == names
            for name, array in answer.items():
                np.testing.assert_array_equal(array, both if name == "both" else both[:, 1])


def test_requests_that_fail_together_get_errors_of_their_own(model: Any) -> None:
    """Triton frees an error's memory with each response that has it: one that two share has ended servers."""
    first, second = model.execute([Request(60, "pred"), Request(5, "pred")])
    assert first.args == second.args == ("65 rows; the plan takes 1 to 64", 13)
    assert first is not second


def test_a_size_that_cannot_be_captured_runs_without_a_graph(
    backend: SimpleNamespace, cuda: gpu_stand_in.Cuda, instance: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = gpu_stand_in.Context.execute_async_v3

    def no_capture_of_16(context: Any, stream: int) -> bool:
        return not (cuda.captured is not None and context.shapes["latent"][0] == 16) and run(context, stream)

    monkeypatch.setattr(gpu_stand_in.Context, "execute_async_v3", no_capture_of_16)
    warnings: list[str] = []
    engine = backend.plan_loading.load(CONFIG, instance, warnings.append)
    assert [warning.split(",")[0] for warning in warnings] == ["no CUDA graph for 16 rows"]
    np.testing.assert_array_equal(engine.run(["pred"], feeds(12))["pred"], expected(feeds(12)))
    assert engine.context.runs == [12]


def test_graph_sizes_are_those_of_the_committed_configs(backend: SimpleNamespace) -> None:
    unet, decoder = (
        MessageToDict(
            parse_config(ROOT / "model_repository" / model / "config.pbtxt"), preserving_proto_field_name=True
        )
        for model in ("unet", "vae_decoder")
    )
    sizes = backend.plan_loading.graph_sizes(unet)
    assert sizes == {1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 8: 7, 12: 9, 16: 13, 24: 17, 32: 25, 48: 33, 64: 49}
    assert backend.plan_loading.graph_sizes(decoder) == {1: 1, 2: 2, 3: 3, 4: 4}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({}, []),
        ({"optimization": {"cuda": {"graphs": True}}}, [1, 2, 3, 4, 6, 8, 12]),
        ({"optimization": {"cuda": {"graphs": True}}, "dynamic_batching": {"preferred_batch_size": []}}, [1, 12]),
        ({"optimization": {"cuda": {"graphs": True}}, "dynamic_batching": {"preferred_batch_size": [5]}}, [1, 5, 12]),
    ],
)
def test_graph_sizes_without_specs_are_tritons(
    backend: SimpleNamespace, config: dict[str, Any], sizes: list[int]
) -> None:
    assert sorted(backend.plan_loading.graph_sizes({"max_batch_size": 12, **config})) == sizes


def test_each_gpu_gets_its_own_plan(
    backend: SimpleNamespace, cuda: gpu_stand_in.Cuda, instance: dict[str, str]
) -> None:
    folder = Path(instance["model_repository"], "1")
    (folder / "model.plan").rename(folder / "model.sm90.plan")
    mixed = {**CONFIG, "cc_model_filenames": {"9.0": "model.sm90.plan", "8.9": "model.sm89.plan"}}
    assert "model.sm90.plan with tensorrt 10.13.2.6" in backend.plan_loading.load(mixed, instance, no_warning).name
    cuda.capability = {"Major": 8, "Minor": 9}
    with pytest.raises(ValueError, match=r"no file .*model\.sm89\.plan, which the config names for .* capability 8\.9"):
        backend.plan_loading.load(mixed, instance, no_warning)


@pytest.mark.parametrize(
    ("config", "plan", "reason"),
    [
        ({}, gpu_stand_in.plan(version="10.9.0.34"), "tensorrt 10.13.2.6 does not take the plan: Version tag does not"),
        ({}, gpu_stand_in.plan(rows=(1, 8, 32)), "the plan takes 1 to 32 rows, and Triton sends 1 to 64"),
        ({}, gpu_stand_in.plan(latent=("HALF", [-1, 4, 4])), "'latent': ('float16', [4, 4])"),
        ({}, gpu_stand_in.plan(noise=("FLOAT", [-1, 1])), "the config declares inputs"),
        ({}, gpu_stand_in.plan(latent=("BF16", [-1, 4, 4])), "tensor 'latent' is BF16"),
        ({}, gpu_stand_in.plan(latent=("FLOAT", [2, 4, 4])), "with a dynamic first axis alone"),
        ({"max_batch_size": 0}, gpu_stand_in.plan(), "max_batch_size is 0"),
        ({"default_model_filename": "absent.plan"}, gpu_stand_in.plan(), "there is no file"),
    ],
)
def test_a_plan_that_does_not_fit_says_why(
    backend: SimpleNamespace,
    cuda: gpu_stand_in.Cuda,
    instance: dict[str, str],
    config: dict[str, Any],
    plan: bytes,
    reason: str,
) -> None:
    Path(instance["model_repository"], "1", "model.plan").write_bytes(plan)
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        backend.plan_loading.load({**CONFIG, **config}, instance, no_warning)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        (("tensorrt", "tensorrt_rtx"), "no working TensorRT"),
        (("cuda.bindings.runtime",), "no working cuda-bindings"),
    ],
)
def test_packages_that_are_missing_are_named(
    backend: SimpleNamespace,
    cuda: gpu_stand_in.Cuda,
    instance: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    absent: tuple[str, ...],
    reason: str,
) -> None:
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{reason}.*pip install --group server-tensorrt"):
        backend.plan_loading.load(CONFIG, instance, no_warning)


def test_a_gpu_that_is_not_there_is_told_by_the_real_cuda_runtime(backend: SimpleNamespace) -> None:
    """Number 99 is on no machine, and most of those that run this have none at all."""
    runtime = importlib.import_module("cuda.bindings.runtime")
    with pytest.raises(RuntimeError, match=r"no NVIDIA GPU 99 .*\(cuda.*\); on a machine without one start the server"):
        backend.cuda_device.Device(runtime, 99)


@pytest.mark.slow
@pytest.mark.parametrize("backend_line", ['platform: "tensorrt_plan"', 'backend: "tensorrt"'])
def test_a_server_without_a_gpu_fails_at_once_and_says_why(tmp_path: Path, backend_line: str) -> None:
    """KIND_GPU is refused by Triton itself; KIND_CPU reaches the backend, for both of its names."""
    for name, kind in (("on_gpu", "KIND_GPU"), ("on_cpu", "KIND_CPU")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.plan").write_bytes(gpu_stand_in.plan())
        config = f"{backend_line} max_batch_size: 64 instance_group {{ count: 1 kind: {kind} }} {TENSORS}"
        (tmp_path / name / "config.pbtxt").write_text(config)
    with pytest.raises(ServerError, match="ended with exit status 1") as caught, TritonServer(tmp_path, profile=None):
        pass
    assert "TensorRT model 'on_cpu': max_batch_size is 64 and the instance KIND_CPU" in str(caught.value)
    assert "on_gpu has kind KIND_GPU but no GPUs are available" in str(caught.value)
