"""Networks that compute next to nothing: what is left is the cost of being called. No image comes out.

Every tensor is read and answered in its shape. The server asks for an image when it has started, so there is a decoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`unet`, `unet_steps` or `vae_decoder`, by the name of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Choose the network."""
        self._outputs = {"unet": _unet, "unet_steps": _unet_steps, "vae_decoder": _decoder}[args["model_name"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        outputs = self._outputs(request).items()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs])


def _input(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _unet(request: Any) -> dict[str, Any]:
    return {"pred": _input(request, "latent") * np.float32(0.1)}


def _unet_steps(request: Any) -> dict[str, Any]:
    """One multiplication whatever the number of steps."""
    names = ("latent", "estimate", "earlier_estimate", "timesteps", "coefficients", "seed", "draw")
    latent, estimate, earlier, timesteps, *_ = (_input(request, name) for name in names)
    outputs = {"next_latent": latent * np.float32(0.9), "next_estimate": estimate, "next_earlier_estimate": earlier}
    if "estimates" in request.requested_output_names():
        outputs["estimates"] = np.repeat(latent[:, None], timesteps.shape[1], axis=1)
    return outputs


def _decoder(request: Any) -> dict[str, Any]:
    """Each pixel of the latent four times in each direction."""
    return {"image": _input(request, "latent").repeat(4, axis=2).repeat(4, axis=3)}
