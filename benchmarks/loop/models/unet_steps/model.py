"""Several steps that compute next to nothing: every tensor is read and has its shape, but no image comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = ("latent", "estimate", "timesteps", "coefficients", "seed", "draw")


class TritonPythonModel:
    """A multiplication whatever the number of steps."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        latent, estimate, timesteps, *_ = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS
        )
        outputs = [
            pb_utils.Tensor("next_latent", latent * np.float32(0.9)),
            pb_utils.Tensor("next_estimate", estimate),
        ]
        if "estimates" in request.requested_output_names():
            every = np.repeat(latent[:, None], timesteps.shape[1], axis=1)
            outputs.append(pb_utils.Tensor("estimates", every))
        return pb_utils.InferenceResponse(outputs)
