"""A python-based Triton backend that answers `backend: "tensorrt"` and `platform: "tensorrt_plan"` where the C++ one is
absent: plans of `tensorrt` or `tensorrt_rtx` with an unchanged config.pbtxt, its CUDA graphs and `cc_model_filenames`.

Experimental: not yet run on a GPU. `plan_loading.py` reads the config, `plan_engine.py` runs the plan; this file
handles the requests. Triton merges them, checks them against the config and never sends more than max_batch_size rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from plan_loading import load


class TritonPythonModel:
    """One plan on one GPU."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Add nothing: the config must be complete."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the plan for this GPU and capture its graphs."""
        config = json.loads(args["model_config"])
        try:
            self.engine = load(config, args, pb_utils.Logger.log_warn)
        except Exception as error:
            raise pb_utils.TritonModelException(f"TensorRT model '{config['name']}': {error}") from error
        pb_utils.Logger.log_info(f"TensorRT model '{config['name']}': {self.engine.name}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """All requests in one call: their rows are independent and of one shape."""
        try:
            inputs = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
            stacked = {name: np.concatenate([tensors[name] for tensors in inputs]) for name in inputs[0]}
            ends = np.cumsum([len(next(iter(tensors.values()))) for tensors in inputs])
            wanted = [list(request.requested_output_names()) for request in requests]
            answers = self.engine.run(sorted(set().union(*wanted)), stacked)
            parts = {name: np.split(answer, ends[:-1]) for name, answer in answers.items()}
        except Exception as error:
            # One error object for each request: Triton frees it with each response, and freeing it twice is a crash.
            code = pb_utils.TritonError.INTERNAL
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code)) for _ in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, parts[name][index]) for name in names])
            for index, names in enumerate(wanted)
        ]
