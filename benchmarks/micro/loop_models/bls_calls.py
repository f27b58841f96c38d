"""The call from model to model and nothing else: no batcher, no recurrence, no second thread."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FEWEST = 5


class TritonPythonModel:
    """Times calls of `unet` or `unet_steps`, one after the other."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        rows, steps, seconds = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0] for name in ("rows", "steps", "seconds")
        )
        model, outputs = ("unet_steps", ["next_latent", "next_estimate"]) if steps else ("unet", ["pred"])
        inputs = _inputs(int(rows), int(steps))
        took: list[float] = []
        ends = time.perf_counter() + seconds
        while len(took) < FEWEST or time.perf_counter() < ends:
            began = time.perf_counter()
            _call(model, inputs, outputs)
            took.append(time.perf_counter() - began)
        return pb_utils.InferenceResponse([pb_utils.Tensor("took", np.array(took, np.float32))])


def _inputs(rows: int, steps: int) -> dict[str, Any]:
    """What the sampling loop would send; an identity step each, so that no real network runs off."""
    latent = np.random.default_rng(0).standard_normal((rows, 1, 64, 64), np.float32)
    if not steps:
        return {"latent": latent, "timesteps": np.full((rows, 1), 500, np.int32)}
    identity = np.array([1, 0, 0, 0, 0, 0, 0, 1], np.float32)
    return {
        "latent": latent,
        "estimate": np.zeros_like(latent),
        "earlier_estimate": np.zeros_like(latent),
        "timesteps": np.full((rows, steps), 500, np.int32),
        "coefficients": np.tile(identity, (rows, steps, 1)),
        "seed": np.zeros((rows, 1), np.int64),
        "draw": np.ones((rows, 1), np.int32),
    }


def _call(model: str, inputs: dict[str, Any], outputs: list[str]) -> None:
    """As the sampling loop makes it: tensors, request, answer, and a copy of each output."""
    tensors = [pb_utils.Tensor(name, array) for name, array in inputs.items()]
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
        inputs=tensors,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    for output in outputs:
        np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy())
