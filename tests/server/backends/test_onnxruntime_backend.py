"""The python-based ONNX Runtime backend, in one real tritonserver over toy ONNX models; ONNX Runtime is the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from server.errors import ServerError
from server.process import TritonServer
from support.toy_models import (
    DTYPES,
    DYNAMIC,
    declare,
    write_echo,
    write_linear,
    write_lookup,
    write_optional,
    write_reshaped,
)

pytestmark = pytest.mark.slow

Feeds = dict[str, np.ndarray[Any, Any]]


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
    bad_search = bad_mode.replace("execution_mode", "cudnn_conv_algo_search")
    accelerator = 'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }\n'
    models = {
        "threads": (good + bad_threads, "parameter 'inter_op_thread_count' has the value 'many'"),
        "mode": (good + bad_mode, "parameter 'execution_mode' has the value '3'"),
        "search": (good + bad_search, "parameter 'cudnn_conv_algo_search' has the value '3'"),
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
