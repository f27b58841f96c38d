"""The profile "openvino" in one real tritonserver, and its backend below Triton. Oracles: ONNX Runtime, PyTorch."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import np_to_triton_dtype

from export.configs import parse_config
from export.graphs import GRAPHS, UNET, VAE_DECODER, random_inputs
from export.onnx.run import cpu_session, feeds_of, run_onnx
from server.errors import ServerError
from server.process import TritonServer
from support.capabilities import openvino_bf16
from support.common import ROOT
from support.serving import assert_images_of_pytorch_and_of_onnx, infer
from support.toy_models import DTYPES, ONE_THREAD, declare, write_echo, write_linear

pytestmark = pytest.mark.slow

Feeds = dict[str, np.ndarray[Any, Any]]
CPU_INSTANCE = {"model_version": "1", "model_instance_kind": "CPU"}
NUMBERS = [name for name in DTYPES if name != "STRING"]


def for_openvino(repository: Path, model: str, parameters: str = "") -> None:
    """Give a toy model to our backend."""
    path = repository / model / "config.pbtxt"
    text = path.read_text().replace(ONE_THREAD, "").replace("onnxruntime", "openvino")
    path.write_text(f'default_model_filename: "model.onnx"\n{text}{parameters}')


@pytest.fixture(scope="module")
def repository(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small networks and two toy models."""
    folder = tmp_path_factory.mktemp("openvino") / "model_repository"
    shutil.copytree(small_repository, folder, symlinks=True)
    write_echo(folder, NUMBERS)
    # Looser than the file on purpose: Triton lets any shape through, and the backend has to refuse it.
    loose = declare("input", "x", "FP32", [-1, -1]) + declare("output", "y", "FP32", [-1, 2])
    write_linear(folder, "whole", "max_batch_size: 0\n" + loose)
    for model in ("echo", "whole"):
        for_openvino(folder, model)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, profile="openvino") as server:
        server.probe()
        yield server


@pytest.fixture
def openvino(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as client:
        yield client


def ask(client: triton.InferenceServerClient, model: str, feeds: Feeds) -> Feeds:
    inputs = [triton.InferInput(name, list(a.shape), np_to_triton_dtype(a.dtype)) for name, a in feeds.items()]
    for tensor, array in zip(inputs, feeds.values(), strict=True):
        tensor.set_data_from_numpy(array)
    result = client.infer(model, inputs, client_timeout=20)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def test_the_served_image_is_that_of_pytorch_and_of_the_cpu_profile(openvino, small_snapshot, raw) -> None:
    assert_images_of_pytorch_and_of_onnx(openvino, raw, small_snapshot)


def test_an_image_does_not_depend_on_its_company_bit_for_bit(openvino) -> None:
    together = infer(openvino, seed=[5, 6, 7, 8, 9], steps=[3, 5, 4, 5, 2])
    for row, (seed, steps) in enumerate([(5, 3), (6, 5), (7, 4), (8, 5), (9, 2)]):
        alone = infer(openvino, seed=[seed], steps=[steps])
        for name in ("image", "final_latent"):
            np.testing.assert_array_equal(alone.as_numpy(name)[0], together.as_numpy(name)[row])


def test_the_log_says_what_computes(server) -> None:
    lines = [line for line in server.log_tail(1000) if "OpenVINO model '" in line]
    assert len(lines) == 5, "two toys and three networks"
    assert all(": f32, OpenVINO " in line for line in lines)
    assert not any("emulated" in line for line in lines)


def test_numbers_of_every_type_come_back_as_they_went(openvino) -> None:
    kinds = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
    feeds = {f"in_{n}": np.arange(6).reshape(3, 2).astype(kinds.get(n) or n.lower()) for n in NUMBERS}
    answers = ask(openvino, "echo", feeds)
    for name in NUMBERS:
        assert answers[f"out_{name}"].dtype == feeds[f"in_{name}"].dtype
        np.testing.assert_array_equal(answers[f"out_{name}"], feeds[f"in_{name}"])


def test_a_model_without_a_batch_axis_and_a_wrong_shape(openvino, repository) -> None:
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    expected = cpu_session(repository / "whole" / "1" / "model.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(ask(openvino, "whole", {"x": x})["y"], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(triton.InferenceServerException, match=r"input 'x' has \[2, 4\].*; the file takes") as caught:
        ask(openvino, "whole", {"x": np.zeros((2, 4), np.float32)})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_config_that_does_not_fit_stops_the_load_and_says_why(tmp_path: Path) -> None:
    good = "max_batch_size: 4\n" + declare("input", "x", "FP32", [3]) + declare("output", "y", "FP32", [2])
    write_linear(tmp_path, "type", good.replace("FP32", "INT32", 1))
    write_linear(tmp_path, "streams", good)
    for_openvino(tmp_path, "type")
    for_openvino(tmp_path, "streams", 'parameters { key: "NUM_STREAMS" value { string_value: "many" } }\n')
    with pytest.raises(ServerError, match="ended with exit status 1") as caught, TritonServer(tmp_path, profile=None):
        pass
    assert "OpenVINO model 'type': input 'x' is TYPE_INT32 in the config and f32 in the file" in str(caught.value)
    assert "OpenVINO model 'streams': parameter 'NUM_STREAMS' is 'many'; it must be a number, A" in str(caught.value)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The backend's module, imported as the stub imports it: by its bare name."""
    monkeypatch.syspath_prepend(ROOT / "server" / "backends" / "openvino")
    yield importlib.import_module("openvino_network")
    del sys.modules["openvino_network"]


def triton_config(model: str, **parameters: str) -> dict[str, Any]:
    """The committed profile as Triton hands it to the backend, with other parameters."""
    config = parse_config(ROOT / "model_repository" / model / "configs" / "openvino.pbtxt")
    without = [tensor for tensor in config.input if tensor.name != "condition"]  # the weights here take no labels
    del config.input[:]
    config.input.extend(without)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return MessageToDict(config, preserving_proto_field_name=True)


def load(backend: ModuleType, repository: Path, model: str, **parameters: str) -> Any:
    instance = {**CPU_INSTANCE, "model_repository": str(repository / model)}
    return backend.Network(triton_config(model, **parameters), instance)


def random_feeds(graph, rows: int) -> Feeds:
    return feeds_of(graph, random_inputs(graph, rows, seed=1))


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_rows_are_those_of_onnxruntime_whatever_the_number_of_streams(graph, backend, small_repository) -> None:
    feeds = random_feeds(graph, rows=3)
    one, two = (load(backend, small_repository, graph.name, NUM_STREAMS=streams) for streams in ("1", "2"))
    assert "1 rows at a time" in one.description
    assert "2 rows at a time" in two.description
    answer = one(feeds, [graph.output.name])[graph.output.name]
    session = cpu_session(small_repository / graph.name / "1" / "model.onnx")
    expected = run_onnx(graph, session, random_inputs(graph, 3, seed=1))
    assert np.linalg.norm(answer - expected) <= 5e-5 * np.linalg.norm(expected)
    np.testing.assert_array_equal(two(feeds, [graph.output.name])[graph.output.name], answer)
    assert one(feeds, []) == {}


def test_bf16_is_refused_where_it_would_be_emulated(backend) -> None:
    """Emulated it is ten times slower than float32, which nobody who asks for it expects."""
    asked = triton_config("unet", HINT_BF16="YES")
    with pytest.raises(ValueError, match=r"which this CPU has not .*'FP32', 'INT8'.* ten times slower"):
        backend.compile_properties(asked, ["FP32", "INT8"])
    assert backend.compile_properties(asked, ["FP32", "BF16"])["INFERENCE_PRECISION_HINT"] == "bf16"
    # On a CPU that has it OpenVINO would take it unasked.
    assert backend.compile_properties(triton_config("unet"), ["FP32", "BF16"])["INFERENCE_PRECISION_HINT"] == "f32"


def test_bf16_computes_in_bf16_or_is_refused(backend, small_repository) -> None:
    feeds, asked = random_feeds(VAE_DECODER, rows=1), {"HINT_BF16": "YES", "ALLOW_EMULATED_BF16": "YES"}
    full = load(backend, small_repository, "vae_decoder")
    assert full.description.startswith("f32")
    assert not full.emulated
    if openvino_bf16() == "absent":
        with pytest.raises(ValueError, match="asks for bf16, but OpenVINO computes f32 on this CPU all the same"):
            load(backend, small_repository, "vae_decoder", **asked)
        return
    half = load(backend, small_repository, "vae_decoder", **asked)
    expected, answer = (network(feeds, ["image"])["image"] for network in (full, half))
    error = np.linalg.norm(answer - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 4e-2
    assert half.description.startswith("bf16")
    assert half.emulated == (openvino_bf16() == "emulated")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"NUM_STREAM": "1"}, r"unknown parameters \['NUM_STREAM'\]; known are \['INFERENCE_NUM_THREADS'"),
        ({"INFERENCE_NUM_THREADS": "-1"}, "'INFERENCE_NUM_THREADS' is '-1'; it must be a whole number"),
        ({"PERFORMANCE_HINT": "FAST"}, "'PERFORMANCE_HINT' is 'FAST'; it must be LATENCY, "),
        ({"HINT_BF16": "NO"}, "'HINT_BF16' is 'NO'; it must be YES, or left out"),
        ({"ENABLE_BATCH_PADDING": "maybe"}, "'ENABLE_BATCH_PADDING' is 'maybe'; it must be YES or NO"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message, backend) -> None:
    with pytest.raises(ValueError, match=message):
        backend.compile_properties(triton_config("unet", **parameters), ["FP32"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": np.zeros((2, 1, 32, 32), np.float32)}, r"'latent' has \[1, 1, 32, 32\] in a row; the file takes"),
        ({"timesteps": np.zeros((1, 1), np.int32)}, r"inputs have \[1, 2\] rows"),
        ({"time": np.zeros((2, 1), np.int32)}, r"inputs are \['latent', 'time', 'timesteps'\]; needed are \['latent'"),
    ],
)
def test_inputs_that_do_not_fit_are_told(change, message, backend, small_repository) -> None:
    network = load(backend, small_repository, "unet")
    with pytest.raises(ValueError, match=message):
        network({**random_feeds(UNET, 2), **change}, ["pred"])
