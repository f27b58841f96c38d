"""Networks that wait as long as a device would take, and compute next to nothing: the cores stay free for the rest."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`unet` or `vae_decoder`, by the name of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read how long a call takes."""
        self._unet = args["model_name"] == "unet"
        parameters = json.loads(args["model_config"])["parameters"]
        self._base, self._row = (float(parameters[name]["string_value"]) for name in ("base", "row"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; the rows of all together take base + row * n seconds."""
        latents = [pb_utils.get_input_tensor_by_name(request, "latent").as_numpy() for request in requests]
        time.sleep(self._base + self._row * sum(map(len, latents)))
        return [pb_utils.InferenceResponse([self._output(latent)]) for latent in latents]

    def _output(self, latent: Any) -> Any:
        if self._unet:
            return pb_utils.Tensor("pred", latent * np.float32(0.1))
        return pb_utils.Tensor("image", latent.repeat(4, axis=2).repeat(4, axis=3))
