"""A python-based Triton backend that answers `backend: "openvino"` where the C++ one is absent: ONNX on a CPU.

`openvino_network.py` reads the config and runs the network; this file handles the requests. Knows none of this
project's models. Triton applies `reshape` itself and checks requests against the config.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

try:
    from openvino_network import Network
except ImportError as missing:
    # Triton's own exception is not there before the module is loaded.
    raise ImportError(
        f"this server's Python environment has no working openvino ({missing}): pip install --group server-openvino"
    ) from missing


class TritonPythonModel:
    """One compiled network for one model instance."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Add nothing: the config must be complete."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Read, check and compile the network."""
        config = json.loads(args["model_config"])
        started = time.monotonic()
        try:
            self.network = Network(config, args)
        except Exception as error:
            raise pb_utils.TritonModelException(f"OpenVINO model '{config['name']}': {error}") from error
        pb_utils.Logger.log_info(
            f"OpenVINO model '{config['name']}': {self.network.description}, loaded in "
            f"{time.monotonic() - started:.1f} s"
        )
        if self.network.emulated:
            pb_utils.Logger.log_warn(
                f"OpenVINO model '{config['name']}': this CPU has no bf16, so it is emulated, about ten times slower "
                "than float32: good for comparing images, not for serving"
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One request after the other, because batching gains nothing on a CPU. A request that fails, fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            # Views of shared memory, valid until execute() returns; OpenVINO has finished with them by then.
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            outputs = self.network(feeds, request.requested_output_names())
        except Exception as error:
            code = pb_utils.TritonError.INVALID_ARG if isinstance(error, ValueError) else pb_utils.TritonError.INTERNAL
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
