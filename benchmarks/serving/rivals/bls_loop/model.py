"""All steps of a request, then the next request: what public tutorials do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mri_ldm.conditioning import CONDITION_SHAPE
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import NoiseSchedule, advance, sampler_table


class TritonPythonModel:
    """DDIM over calls of `unet`."""

    def initialize(self, args: dict[str, str]) -> None:
        record = json.loads((Path(__file__).parent / "model.json").read_text())
        self._schedule = NoiseSchedule(**record["noise_schedule"])
        takes_labels = record.get("conditioning") == "labels"
        self._unlabelled = {"condition": np.zeros((1, *CONDITION_SHAPE), np.float32)} if takes_labels else {}

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        seed, steps = (
            int(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0, 0]) for name in ("seed", "steps")
        )
        table = sampler_table(self._schedule, "ddim", steps, 0.0)
        x = standard_normal(seed, 0)[None]
        h = none = np.zeros_like(x)
        for step in range(steps):
            timestep = table.timesteps[step].reshape(1, 1)
            eps = _call("unet", "pred", latent=x, timesteps=timestep, **self._unlabelled)
            x, h, _ = advance(table.coefficients[step][None], x, eps, h, none, none)
        image = _call("vae_decoder", "image", latent=x)
        return pb_utils.InferenceResponse([pb_utils.Tensor("image", image)])


def _call(model: str, output: str, **inputs: Any) -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in inputs.items()]
    response = pb_utils.InferenceRequest(model_name=model, requested_output_names=[output], inputs=tensors).exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, output).as_numpy()
