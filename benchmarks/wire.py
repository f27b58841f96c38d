"""Requests below the client library: Triton's own gRPC client, and HTTP with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

Array = np.ndarray[Any, Any]
TIMEOUT_S = 600.0
COUNTED_S = 30.0  # until Triton's statistics are complete, which takes a moment
LOOKS_S = 0.2


def ask(
    client: InferenceServerClient, model: str, output: str, feeds: Mapping[str, Array], timeout_s: float = TIMEOUT_S
) -> Array:
    """One output of one gRPC request.

    Raises:
        ValueError: the answer is not finite.
    """
    inputs, wanted = _request(output, feeds)
    answer = client.infer(model, inputs, outputs=wanted, client_timeout=timeout_s).as_numpy(output)
    return _finite(answer, model, output)


def send(
    client: InferenceServerClient,
    model: str,
    output: str,
    feeds: Mapping[str, Array],
    answer: Callable[[Any, Exception | None], None],
    timeout_s: float = TIMEOUT_S,
) -> None:
    """The same without waiting: `answer` is called with the result or an error, in another thread."""
    inputs, wanted = _request(output, feeds)
    client.async_infer(model, inputs, answer, outputs=wanted, client_timeout=timeout_s)


def _request(output: str, feeds: Mapping[str, Array]) -> tuple[list[Any], list[Any]]:
    import tritonclient.grpc as triton

    inputs = []
    for name, array in feeds.items():
        inputs.append(triton.InferInput(name, list(array.shape), triton.np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs, [triton.InferRequestedOutput(output)]


class Counts(NamedTuple):
    """What Triton's statistics say of a model since its start, all of the same calls.

    A call is counted after its answer was handed on: whoever reads at once may miss the last one.
    """

    rows: int
    calls: int
    ns: int  # compute, and the copies in and out

    def since(self, before: Counts) -> Counts:
        """What has come since `before`."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


def counts(
    client: InferenceServerClient, model: str, headers: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> Counts:
    """Those of `model`. Raises InferenceServerException where the server has none."""
    answer = client.get_inference_statistics(model, headers=headers and dict(headers), client_timeout=timeout_s)
    sizes = answer.model_stats[0].batch_stats  # `inference_count` is of requests, and ahead of the calls
    return Counts(
        rows=sum(size.batch_size * size.compute_infer.count for size in sizes),
        calls=sum(size.compute_infer.count for size in sizes),
        ns=sum(size.compute_infer.ns + size.compute_input.ns + size.compute_output.ns for size in sizes),
    )


def settled(client: InferenceServerClient, models: Sequence[str], timeout_s: float = COUNTED_S) -> dict[str, Counts]:
    """The counts of each model on a server that nobody asks: once two looks at them see the same.

    Raises:
        TimeoutError: they go on changing.
    """
    deadline, before = time.monotonic() + timeout_s, None
    while (now := {model: counts(client, model) for model in models}) != before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Triton counts calls of {' and '.join(models)} although nobody has asked for anything")
        before = now
        time.sleep(LOOKS_S)
    return now


def ask_http(url: str, model: str, output: str, feeds: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """One float32 output of one HTTP request: JSON there, the extension for binary tensors back.

    Raises:
        RuntimeError: the server refuses; with its words.
        ValueError: the answer is not finite.
    """
    types = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
    inputs = [
        {"name": name, "datatype": types[array.dtype.name], "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]
    body = {"inputs": inputs, "outputs": [{"name": output, "parameters": {"binary_data": True}}]}
    headers, content = post_json(url, f"/v2/models/{model}/infer", body)
    start = int(headers["Inference-Header-Content-Length"])
    return _finite(np.frombuffer(content, np.float32, offset=start).reshape(shape), model, output)


def post_json(url: str, path: str, body: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> tuple[Message, bytes]:
    """Headers and content of the answer of `url` (host:port) to one POST, over a connection of its own.

    Raises:
        RuntimeError: the status is not 200; with the server's words.
    """
    connection = http.client.HTTPConnection(url, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path} answered {response.status}: {content[:300].decode(errors='replace')}")
    return response.headers, content


def _finite(answer: Array | None, model: str, output: str) -> Array:
    if answer is None or (answer.dtype != np.object_ and not np.isfinite(answer).all()):
        raise ValueError(f"{model} answered no finite {output}")
    return answer
