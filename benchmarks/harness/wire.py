"""Requests below the client library: those of Triton's own clients."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

Array = np.ndarray[Any, Any]
TIMEOUT_S = 600.0
COUNTED_S = 30.0  # until Triton's statistics are complete, which takes a moment
READING_S = 0.2  # between two readings


def image_feeds(seeds: Sequence[int], steps: int) -> dict[str, Array]:
    """Inputs of `mri_ldm`: a row for each seed."""
    return {"seed": np.array(seeds, np.int64)[:, None], "steps": np.full((len(seeds), 1), steps, np.int32)}


def ask(
    client: InferenceServerClient, model: str, output: str, feeds: Mapping[str, Array], timeout_s: float = TIMEOUT_S
) -> Array:
    """One output of one gRPC request.

    Raises:
        ValueError: the answer is not finite.
    """
    import tritonclient.grpc as triton

    inputs, outputs = request(triton, [output], feeds)
    answer = client.infer(model, inputs, outputs=outputs, client_timeout=timeout_s).as_numpy(output)
    return _finite(answer, model, output)


def request(triton: Any, outputs: Sequence[str], feeds: Mapping[str, Array]) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of a request, as tritonclient.grpc or tritonclient.http wants them."""
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, array in feeds.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs, [triton.InferRequestedOutput(name) for name in outputs]


class Counts(NamedTuple):
    """What Triton's statistics say of a model since its start, all of the same calls.

    A call is counted after its answer was sent, so a reading at once may miss the last call.
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
    """The counts of each model on an idle server, once two readings are the same.

    Raises:
        TimeoutError: they go on changing.
    """
    deadline, before = time.monotonic() + timeout_s, None
    while (now := {model: counts(client, model) for model in models}) != before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Triton counts calls of {' and '.join(models)} although nobody has asked for anything")
        before = now
        time.sleep(READING_S)
    return now


def ask_http(
    url: str, model: str, output: str, feeds: Mapping[str, Array], shape: tuple[int, ...], timeout_s: float = TIMEOUT_S
) -> Array:
    """The same over HTTP, with a connection of its own to `url` (host:port), past any proxy; the answer as `shape`."""
    import tritonclient.http as triton

    inputs, outputs = request(triton, [output], feeds)
    with triton.InferenceServerClient(url, connection_timeout=timeout_s, network_timeout=timeout_s) as client:
        answer = client.infer(model, inputs, outputs=outputs).as_numpy(output)
    return _finite(answer, model, output).reshape(shape)


def _finite(answer: Array | None, model: str, output: str) -> Array:
    if answer is None or (answer.dtype != np.object_ and not np.isfinite(answer).all()):
        raise ValueError(f"{model} answered no finite {output}")
    return answer
