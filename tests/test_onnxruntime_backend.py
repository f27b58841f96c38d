"""The python-based ONNX Runtime backend, in one real tritonserver over toy ONNX models; ONNX Runtime is the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import np_to_triton_dtype

from server.errors import ServerError
from server.process import TritonServer

Feeds = dict[str, np.ndarray[Any, Any]]

DTYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "STRING": TensorProto.STRING,
}
ONE_THREAD = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
DYNAMIC = "dynamic_batching { max_queue_delay_microseconds: 200000 }\n"
WEIGHTS = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)


def tensor(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def declare(side: str, name: str, kind: str, dims: Sequence[int], more: str = "") -> str:
    return f'{side} {{ name: "{name}" data_type: TYPE_{kind} dims: {list(dims)} {more} }}\n'


def write_model(
    repository: Path,
    name: str,
    config: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    filename: str = "model.onnx",
) -> None:
    initializers = [onnx.numpy_helper.from_array(value, key) for key, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), folder / filename)
    group = "instance_group { count: 1 kind: KIND_CPU }\n"
    (repository / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{group}{config}')


def write_echo(repository: Path) -> None:
    names = list(DTYPES)
    write_model(
        repository,
        "echo",
        "max_batch_size: 4\n"
        + "".join(declare("input", f"in_{n}", n, [2]) + declare("output", f"out_{n}", n, [2]) for n in names),
        [helper.make_node("Identity", [f"in_{n}"], [f"out_{n}"]) for n in names],
        [tensor(f"in_{n}", DTYPES[n], ["B", 2]) for n in names],
        [tensor(f"out_{n}", DTYPES[n], ["B", 2]) for n in names],
    )


def write_linear(repository: Path, name: str, config: str, filename: str = "model.onnx") -> None:
    write_model(
        repository,
        name,
        config + ONE_THREAD,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", TensorProto.FLOAT, ["B", 3])],
        [tensor("y", TensorProto.FLOAT, ["B", 2])],
        {"w": WEIGHTS},
        filename,
    )


def write_reshaped(repository: Path) -> None:
    """The file has `t` of shape [B] and `x` of shape [B, 2, N]; clients see [B, 1] and [B, 1, 2, N]."""
    write_model(
        repository,
        "reshaped",
        "max_batch_size: 4\n"
        + declare("input", "t", "INT32", [1], "reshape { shape: [] }")
        + declare("input", "x", "FP32", [1, 2, -1], "reshape { shape: [2, -1] }")
        + declare("output", "double", "INT32", [1], "reshape { shape: [] }")
        + declare("output", "minus", "FP32", [1, 2, -1], "reshape { shape: [2, -1] }"),
        [helper.make_node("Add", ["t", "t"], ["double"]), helper.make_node("Neg", ["x"], ["minus"])],
        [tensor("t", TensorProto.INT32, ["B"]), tensor("x", TensorProto.FLOAT, ["B", 2, "N"])],
        [tensor("double", TensorProto.INT32, ["B"]), tensor("minus", TensorProto.FLOAT, ["B", 2, "N"])],
    )


def write_lookup(repository: Path) -> None:
    """Fails for an index beyond 9."""
    write_model(
        repository,
        "lookup",
        "max_batch_size: 8\n"
        + DYNAMIC
        + ONE_THREAD
        + declare("input", "index", "INT64", [1])
        + declare("output", "entry", "FP32", [1]),
        [helper.make_node("Gather", ["table", "index"], ["entry"])],
        [tensor("index", TensorProto.INT64, ["B", 1])],
        [tensor("entry", TensorProto.FLOAT, ["B", 1])],
        {"table": np.arange(10, dtype=np.float32) / 3},
    )


def write_optional(repository: Path) -> None:
    write_model(
        repository,
        "optional",
        "max_batch_size: 0\n"
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in {
                "inter_op_thread_count": "1",
                "execution_mode": "1",
                "enable_mem_arena": "1",
                "enable_mem_pattern": "false",
                "memory.enable_memory_arena_shrinkage": "cpu:0",
                "session.intra_op.allow_spinning": "0",
            }.items()
        )
        + "optimization { graph { level: -1 } }\n"
        + declare("input", "x", "FP32", [2])
        + declare("input", "shift", "FP32", [2], "optional: true")
        + declare("output", "y", "FP32", [2]),
        [helper.make_node("Add", ["x", "shift"], ["y"])],
        [tensor("x", TensorProto.FLOAT, [2]), tensor("shift", TensorProto.FLOAT, [2])],
        [tensor("y", TensorProto.FLOAT, [2])],
        {"shift": np.array([10, 20], np.float32)},
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_echo(folder)
    write_reshaped(folder)
    write_lookup(folder)
    write_optional(folder)
    rows = declare("input", "x", "FP32", [3]) + declare("output", "y", "FP32", [2])
    write_linear(folder, "batched", "max_batch_size: 16\n" + DYNAMIC + rows)
    # Looser than the file on purpose: Triton lets any shape through, and ONNX Runtime has to refuse it.
    loose = declare("input", "x", "FP32", [-1, -1]) + declare("output", "y", "FP32", [-1, 2])
    write_linear(folder, "whole", 'max_batch_size: 0\ndefault_model_filename: "odd.onnx"\n' + loose, "odd.onnx")
    return folder


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[triton.InferenceServerClient]:
    with (
        TritonServer(repository, profile=None, startup_timeout_s=60) as server,
        triton.InferenceServerClient(server.grpc_url) as connected,
    ):
        yield connected


def ask(client: triton.InferenceServerClient, model: str, feeds: Feeds, outputs: Sequence[str] = ()) -> Feeds:
    inputs = []
    for name, array in feeds.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
    result = client.infer(model, inputs, outputs=wanted, client_timeout=20)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def in_process(repository: Path, model: str, feeds: Feeds) -> Feeds:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = next((repository / model / "1").glob("*.onnx"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def echo_feeds(rows: int = 3) -> Feeds:
    numbers = np.arange(2 * rows).reshape(rows, 2)
    kinds = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
    feeds: Feeds = {f"in_{n}": numbers.astype(kinds.get(n) or n.lower()) for n in DTYPES if n != "STRING"}
    words = ["", "a", "schön", "脳", "two words", "nul\0inside"] * rows
    feeds["in_STRING"] = np.array([word.encode() for word in words[: 2 * rows]], dtype=np.object_).reshape(rows, 2)
    return feeds


def test_every_data_type_comes_back_as_it_went(client: triton.InferenceServerClient) -> None:
    feeds = echo_feeds()
    answers = ask(client, "echo", feeds)
    assert len(answers) == len(DTYPES)
    for name in DTYPES:
        assert answers[f"out_{name}"].dtype == feeds[f"in_{name}"].dtype
        np.testing.assert_array_equal(answers[f"out_{name}"], feeds[f"in_{name}"])


def test_only_requested_outputs_come_back(client: triton.InferenceServerClient) -> None:
    assert set(ask(client, "echo", echo_feeds(), ["out_FP16", "out_BOOL"])) == {"out_FP16", "out_BOOL"}


def test_text_that_is_not_utf8_is_the_clients_mistake(client: triton.InferenceServerClient) -> None:
    feeds = echo_feeds()
    feeds["in_STRING"][0, 0] = b"\xff\xfe"
    with pytest.raises(triton.InferenceServerException, match="'in_STRING' is not UTF-8") as caught:
        ask(client, "echo", feeds)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("rows", [1, 3])
def test_reshape_hides_the_shapes_of_the_file(
    client: triton.InferenceServerClient, repository: Path, rows: int
) -> None:
    steps = np.arange(rows, dtype=np.int32).reshape(rows, 1)
    x = np.arange(rows * 10, dtype=np.float32).reshape(rows, 1, 2, 5)
    answers = ask(client, "reshaped", {"t": steps, "x": x})
    expected = in_process(repository, "reshaped", {"t": steps.reshape(rows), "x": x.reshape(rows, 2, 5)})
    np.testing.assert_array_equal(answers["double"], expected["double"].reshape(rows, 1))
    np.testing.assert_array_equal(answers["minus"], expected["minus"].reshape(rows, 1, 2, 5))


def test_model_without_a_batch_axis(client: triton.InferenceServerClient, repository: Path) -> None:
    feeds: Feeds = {"x": np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)}
    np.testing.assert_array_equal(ask(client, "whole", feeds)["y"], in_process(repository, "whole", feeds)["y"])


def test_optional_input(client: triton.InferenceServerClient) -> None:
    x, shift = np.array([1, 2], np.float32), np.array([3, 3], np.float32)
    np.testing.assert_array_equal(ask(client, "optional", {"x": x})["y"], [11, 22])
    np.testing.assert_array_equal(ask(client, "optional", {"x": x, "shift": shift})["y"], [4, 5])


@pytest.mark.parametrize(
    ("model", "shape"), [("batched", (2, 4)), ("whole", (2, 4)), ("batched", (17, 3)), ("whole", (2, 3, 1))]
)
def test_wrong_shape_is_the_clients_mistake(
    client: triton.InferenceServerClient, model: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        ask(client, model, {"x": np.zeros(shape, np.float32)})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_requests_that_share_a_batch_get_their_own_rows(client: triton.InferenceServerClient, repository: Path) -> None:
    rng = np.random.default_rng(2)
    sent: list[Feeds] = [{"x": rng.standard_normal((rows, 3)).astype(np.float32)} for rows in (1, 2, 3, 1, 4, 2)]
    before = executions(client, "batched")
    with ThreadPoolExecutor(len(sent)) as pool:
        answers = list(pool.map(lambda feeds: ask(client, "batched", feeds), sent))
    assert executions(client, "batched") - before < len(sent)  # some of them did share one
    for feeds, answer in zip(sent, answers, strict=True):
        # Rounding may differ with the number of rows in one matrix product.
        np.testing.assert_allclose(answer["y"], in_process(repository, "batched", feeds)["y"], rtol=1e-6, atol=1e-6)


def executions(client: triton.InferenceServerClient, model: str) -> int:
    return int(client.get_inference_statistics(model).model_stats[0].execution_count)


def test_a_bad_request_does_not_fail_those_in_its_batch(client: triton.InferenceServerClient) -> None:
    def entry(index: int) -> float | str:
        try:
            return float(ask(client, "lookup", {"index": np.array([[index]])})["entry"][0, 0])
        except triton.InferenceServerException as error:
            return str(error.status())

    before = executions(client, "lookup")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(entry, [1, 99, 2, 3]))
    assert executions(client, "lookup") - before < 4
    assert answers == [pytest.approx(1 / 3), "StatusCode.INVALID_ARGUMENT", pytest.approx(2 / 3), 1.0]


def test_a_config_that_does_not_fit_stops_the_load_and_says_why(tmp_path: Path) -> None:
    """One start over broken models: each has to be told by name, with its own reason."""
    good = declare("input", "x", "FP32", [3]) + declare("output", "y", "FP32", [2])
    bad_threads = 'parameters { key: "inter_op_thread_count" value { string_value: "many" } }\n'
    bad_mode = 'parameters { key: "execution_mode" value { string_value: "3" } }\n'
    accelerator = 'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }\n'
    models = {
        "threads": (good + bad_threads, "parameter 'inter_op_thread_count' has the value 'many'"),
        "mode": (good + bad_mode, "parameter 'execution_mode' has the value '3'"),
        "accelerated": (good + accelerator, "'execution_accelerators' needs Triton's own ONNX Runtime backend"),
        "name": (good.replace('"x"', '"z"'), "the config names an input 'z', but the file has ['x']"),
        "type": (good.replace("FP32", "FP16", 1), "input 'x' is TYPE_FP16 in the config and tensor(float)"),
        "shape": (good.replace("[2]", "[4]"), "output 'y' has shape [-1, 4] in the config and ['B', 2]"),
        "file": (good + 'default_model_filename: "absent.onnx"\n', "there is no file "),
    }
    for name, (config, _) in models.items():
        write_linear(tmp_path, name, "max_batch_size: 4\n" + config)
    with pytest.raises(ServerError, match="ended with exit status 1") as caught, TritonServer(tmp_path, profile=None):
        pass
    for name, (_, reason) in models.items():
        assert f"ONNX model '{name}': {reason}" in str(caught.value)
