"""A python-based Triton backend, `backend: "torch_export"`: programs of torch.export on a GPU or a CPU.

`torch_loading.py` reads the config, `torch_program.py` runs the program, `torch_steps.py` several steps of it in one
call; this file handles the requests. Triton merges them, checks them against the config and never sends more than
max_batch_size rows. The server's Python needs torch. The GPU parts are experimental: not yet run on a GPU.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import torch
    from torch_loading import load
except ImportError as missing:
    # Triton's own exception is not there before the module is loaded.
    raise ImportError(
        f"this server's Python environment has no working torch ({missing}): pip install torch"
    ) from missing


class _TritonLog(logging.Handler):
    """Sends log messages of the modules beside this one to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        say = pb_utils.Logger.log_warn if record.levelno >= logging.WARNING else pb_utils.Logger.log_info
        say(record.getMessage())


_OURS = logging.getLogger("torch_compiled")
_OURS.addHandler(_TritonLog())
_OURS.setLevel(logging.INFO)


class TritonPythonModel:
    """One program on one device."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Add nothing: the config must be complete."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the program and, on a GPU, capture its graphs."""
        config = json.loads(args["model_config"])
        started = time.monotonic()
        try:
            self.program = load(config, args)
        except Exception as error:
            raise pb_utils.TritonModelException(f"torch.export model '{config['name']}': {error}") from error
        record, buckets = self.program.record, self.program.buckets
        pb_utils.Logger.log_info(
            f"torch.export model '{config['name']}': {record.precision}, written by torch {record.torch}, runs on "
            f"{self.program.device} with torch {torch.__version__}, CUDA graphs for batches {buckets or 'none'}, "
            f"loaded in {time.monotonic() - started:.1f} s"
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """All requests in one call, since their rows are independent and of one shape."""
        try:
            inputs = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
            stacked = {name: np.concatenate([tensors[name] for tensors in inputs]) for name in inputs[0]}
            ends = np.cumsum([len(next(iter(tensors.values()))) for tensors in inputs])
            wanted = [list(request.requested_output_names()) for request in requests]
            answers = self.program.run(set().union(*wanted), stacked)
            parts = {name: np.split(answer, ends[:-1]) for name, answer in answers.items()}
        except Exception as error:
            wrong = isinstance(error, ValueError)
            if wrong and len(requests) > 1:  # only one of the requests may be wrong
                return [response for request in requests for response in self.execute([request])]
            # One error object for each request: Triton frees it with each response, and freeing it twice is a crash.
            code = pb_utils.TritonError.INVALID_ARG if wrong else pb_utils.TritonError.INTERNAL
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code)) for _ in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, parts[name][index]) for name in names])
            for index, names in enumerate(wanted)
        ]
