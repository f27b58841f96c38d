"""A decoder that enlarges; nothing here is timed with it, but the server asks for an image when it has started."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Each pixel of the latent four times in each direction."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        latent = pb_utils.get_input_tensor_by_name(request, "latent").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("image", latent.repeat(4, axis=2).repeat(4, axis=3))])
