"""The two networks as functions: NumPy arrays in and out, one BLS call each."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .line import Array


class NetworkError(Exception):
    """A call of `unet` or `vae_decoder` has failed; the message names the model."""


class ServerStopping(NetworkError):
    """The server refuses inner calls because it is shutting down; another server may answer the same request."""


def denoise(latents: Array, timesteps: NDArray[np.int32]) -> Array:
    """Predicted noise [n, 1, 64, 64] of latents [n, 1, 64, 64], each at its own timestep [n]."""
    return _call("unet", {"latent": latents, "timesteps": timesteps[:, None]}, "pred")


def decode(latents: Array, crop: int) -> Array:
    """Images [n, 1, 240, 240] of scaled latents [n, 1, 64, 64]; the padding of training is cut off."""
    images = _call("vae_decoder", {"latent": latents}, "image")
    return images[:, :, crop:-crop, crop:-crop] if crop else images


def _call(model: str, inputs: dict[str, NDArray[Any]], output: str) -> Array:
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        # A GPU model would leave its output there, where NumPy cannot read it.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    try:
        response = request.exec()
    except pb_utils.TritonModelException as error:
        raise _failure(model, str(error)) from error
    if response.has_error():
        raise _failure(model, response.error().message())
    # A copy: the tensor's memory goes back to the pool with the response.
    return np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy())


def _failure(model: str, message: str) -> NetworkError:
    # The Python backend's words for every inner call between SIGTERM and the end.
    if "Server not ready" in message:
        return ServerStopping("the server is shutting down: try again later")
    return NetworkError(f"model {model!r} has failed: {message}")
