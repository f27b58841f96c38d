"""A python-based Triton backend that answers `backend: "onnxruntime"` where the C++ one is absent.

Serves any ONNX model with an unchanged config.pbtxt: same parameters, same tensors. Runs on the CPU, or by
ONNX Runtime's CUDA provider where the environment has it. Knows none of this project's models. Triton itself
applies `reshape`, to inputs before `execute` and to outputs after it, and checks requests against the config.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import onnxruntime as ort
except ImportError as missing:
    # Triton's own exception is not there before the module is loaded.
    raise ImportError(
        f"this server's Python environment has no working onnxruntime ({missing}): pip install --group server"
    ) from missing

Json = dict[str, Any]
Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_STRING": "tensor(string)",
}
# What the C++ backend does for `optimization { graph { level } }`; any other value is its default.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}
# The numbers of the C++ backend, and ONNX Runtime's names for them.
CONVOLUTION_SEARCHES = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}
BOOLEANS = {"0": False, "false": False, "1": True, "true": True}


class TritonModel:
    """One ONNX Runtime session for one model instance."""

    def __init__(self, config: Json, path: str, kind: str, device: int) -> None:
        self.batched = int(config["max_batch_size"]) > 0
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.session = ort.InferenceSession(path, session_options(config), providers=providers(config, kind, device))
        self.run_options = run_options(config)
        check_tensors(config, self.session, self.batched)

    def run(self, names: list[str], feeds: Tensors) -> Tensors:
        values = self.session.run(names, feeds, self.run_options)
        return dict(zip(names, values, strict=True))


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        try:
            path = model_path(config, args["model_repository"], args["model_version"])
            self.model = TritonModel(config, path, args["model_instance_kind"], int(args["model_instance_device_id"]))
        except Exception as error:
            raise pb_utils.TritonModelException(f"ONNX model '{config['name']}': {error}") from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        feeds: dict[int, Tensors] = {}
        for slot, request in enumerate(requests):
            try:
                feeds[slot] = read_inputs(request)
            except Exception as error:
                responses[slot] = failure(error)
        for slots in groups(feeds) if self.model.batched else [[slot] for slot in feeds]:
            for slot, response in self.answer(slots, requests, feeds):
                responses[slot] = response
        return responses

    def answer(self, slots: list[int], requests: Sequence[Any], feeds: dict[int, Tensors]) -> list[tuple[int, Any]]:
        """Responses of requests that may run together: in one call, or one by one if that call fails."""
        wanted = [set(requests[slot].requested_output_names()) for slot in slots]
        names = [name for name in self.model.outputs if name in set().union(*wanted)]
        try:
            results = self.run_together(names, [feeds[slot] for slot in slots])
            return [
                (slot, success({name: result[name] for name in names if name in its_own}))
                for slot, its_own, result in zip(slots, wanted, results, strict=True)
            ]
        except Exception as error:
            if len(slots) == 1:
                return [(slots[0], failure(error))]
            return [answer for slot in slots for answer in self.answer([slot], requests, feeds)]

    def run_together(self, names: list[str], feeds: list[Tensors]) -> list[Tensors]:
        if len(feeds) == 1:
            return [self.model.run(names, feeds[0])]
        rows = [len(next(iter(feed.values()))) for feed in feeds]
        stacked = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        values = self.model.run(names, stacked)
        for name, value in values.items():
            if value.shape[:1] != (sum(rows),):
                raise ValueError(f"output '{name}' has shape {value.shape} for {sum(rows)} rows")
        parts = {name: np.split(value, np.cumsum(rows)[:-1]) for name, value in values.items()}
        return [{name: part[index] for name, part in parts.items()} for index in range(len(feeds))]


def groups(feeds: dict[int, Tensors]) -> list[list[int]]:
    """Requests with the same inputs, of the same shape but for the batch axis."""
    alike: defaultdict[Any, list[int]] = defaultdict(list)
    for slot, tensors in feeds.items():
        alike[tuple(sorted((name, array.shape[1:]) for name, array in tensors.items()))].append(slot)
    return list(alike.values())


def read_inputs(request: Any) -> Tensors:
    # Views of shared memory, valid until execute() returns; ONNX Runtime has finished with them by then.
    return {tensor.name(): from_triton(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}


def from_triton(name: str, array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    try:
        strings = [item.decode() for item in array.ravel()]  # ONNX Runtime would take the repr of bytes
    except UnicodeDecodeError as error:
        raise ValueError(f"input '{name}' is not UTF-8: {error}") from error
    return np.array(strings, dtype=np.object_).reshape(array.shape)


def success(tensors: Tensors) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ascontiguousarray(a)) for name, a in tensors.items()])


def failure(error: Exception) -> Any:
    # ONNX Runtime raises ValueError for absent inputs and InvalidArgument for shapes that do not fit.
    of_request = isinstance(error, ValueError) or type(error).__name__ == "InvalidArgument"
    code = pb_utils.TritonError.INVALID_ARG if of_request else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))


def model_path(config: Json, repository: str, version: str) -> str:
    path = os.path.join(repository, version, config.get("default_model_filename") or "model.onnx")
    if os.path.isdir(path):  # a model with its external data
        path = os.path.join(path, "model.onnx")
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}")
    return path


def session_options(config: Json) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = parameter(config, "intra_op_thread_count", thread_count, 0)
    options.inter_op_num_threads = parameter(config, "inter_op_thread_count", thread_count, 0)
    options.execution_mode = parameter(config, "execution_mode", EXECUTION_MODES.__getitem__, options.execution_mode)
    options.enable_cpu_mem_arena = parameter(config, "enable_mem_arena", boolean, True)
    options.enable_mem_pattern = parameter(config, "enable_mem_pattern", boolean, True)
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for key, value in config.get("parameters", {}).items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value["string_value"])
    return options


def run_options(config: Json) -> ort.RunOptions:
    options, key = ort.RunOptions(), "memory.enable_memory_arena_shrinkage"
    if key in config.get("parameters", {}):
        options.add_run_config_entry(key, parameter(config, key, str, ""))
    return options


def parameter(config: Json, key: str, parse: Callable[[str], Any], default: Any) -> Any:
    if key not in config.get("parameters", {}):
        return default
    text = config["parameters"][key]["string_value"].strip()
    try:
        return parse(text)
    except (KeyError, ValueError):
        raise ValueError(f"parameter '{key}' has the value '{text}', which is not one that it takes") from None


def thread_count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def boolean(text: str) -> bool:
    return BOOLEANS[text.lower()]


def providers(config: Json, kind: str, device: int) -> list[Any]:
    if config.get("optimization", {}).get("execution_accelerators"):
        raise ValueError(
            "'execution_accelerators' needs Triton's own ONNX Runtime backend; take them out of the config"
        )
    search = parameter(config, "cudnn_conv_algo_search", CONVOLUTION_SEARCHES.__getitem__, "EXHAUSTIVE")
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ValueError("a KIND_GPU instance needs the package onnxruntime-gpu, and a GPU; use KIND_CPU here")
    cuda = ("CUDAExecutionProvider", {"device_id": device, "cudnn_conv_algo_search": search})
    return [cuda, "CPUExecutionProvider"]


def check_tensors(config: Json, session: ort.InferenceSession, batched: bool) -> None:
    """Compare every tensor by name, type and shape. Raises ValueError with what the file has."""
    required, optional = session.get_inputs(), session.get_overridable_initializers()
    check_side("input", config["input"], [*required, *optional], batched)
    check_side("output", config["output"], session.get_outputs(), batched)
    absent = {tensor.name for tensor in required} - {tensor["name"] for tensor in config["input"]}
    if absent:
        raise ValueError(f"the file needs inputs that the config does not name: {sorted(absent)}")


def check_side(side: str, declared: list[Json], present: Sequence[Any], batched: bool) -> None:
    by_name = {tensor.name: tensor for tensor in present}
    for tensor in declared:
        name = tensor["name"]
        if name not in by_name:
            raise ValueError(f"the config names an {side} '{name}', but the file has {sorted(by_name)}")
        port, kind = by_name[name], tensor["data_type"]
        if TYPES.get(kind) != port.type:
            raise ValueError(f"{side} '{name}' is {kind} in the config and {port.type} in the file")
        dims = [int(size) for size in tensor.get("reshape", {"shape": tensor["dims"]}).get("shape", [])]
        dims = [-1, *dims] if batched else dims
        # ONNX Runtime shows an unknown rank and a scalar alike, as an empty shape: nothing to compare with.
        if port.shape and not fits(dims, port.shape, batched):
            raise ValueError(f"{side} '{name}' has shape {dims} in the config and {port.shape} in the file")


def fits(dims: list[int], shape: list[Any], batched: bool) -> bool:
    """Whether two sizes match: -1 and a symbolic size match any size; a batch axis only matches a symbolic one."""
    sizes = [size if isinstance(size, int) and size >= 0 else -1 for size in shape]
    if len(sizes) != len(dims) or (batched and sizes[0] != -1):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(dims, sizes, strict=True))
