"""A network of one multiplication: what is left is the cost of being called."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """pred is a tenth of the latent."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        latent = pb_utils.get_input_tensor_by_name(request, "latent").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("pred", latent * np.float32(0.1))])
