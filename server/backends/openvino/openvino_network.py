"""A config.pbtxt to a network that OpenVINO has compiled for the CPU, and its calls. Knows nothing of requests.

A model with a batch axis is compiled for one row, and the rows of a call run one by one, NUM_STREAMS at a time. On a
CPU that costs no more than a batch, needs the memory of one row, and no result can depend on the other rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import openvino as ov

Json = dict[str, Any]
Array = np.ndarray[Any, Any]
YES_NO = {"yes": True, "no": False}
# Parameters of Triton's own backend, with OpenVINO's names for their values.
PROPERTIES = ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")
# Parameters for padding and splitting batches. They have no effect here: rows run one by one.
WITHOUT_EFFECT = ("ENABLE_BATCH_PADDING", "SKIP_OV_DYNAMIC_BATCHSIZE")
PRECISION = "HINT_BF16"
EMULATION = "ALLOW_EMULATED_BF16"
PARAMETERS = (*PROPERTIES, PRECISION, EMULATION, *WITHOUT_EFFECT)
HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")
TYPES = {
    "TYPE_BOOL": "boolean",
    **{f"TYPE_UINT{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
    **{f"TYPE_INT{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"TYPE_FP{bits}": f"f{bits}" for bits in (16, 32, 64)},
}


@cache
def shared_core() -> ov.Core:
    """One core for all networks of a process: destroying one of several can remove the stack for signals."""
    return ov.Core()


class Network:
    """The network of a config, on the CPU; called with arrays by name, the first axis the rows if it is batched.

    Raises:
        ValueError: the file, a tensor, a parameter or the kind of instance does not fit, or the CPU does not compute in
            the precision asked for; says what is allowed.
    """

    def __init__(self, config: Json, instance: Mapping[str, str]) -> None:
        if instance["model_instance_kind"] == "GPU":
            raise ValueError("it runs on CPUs only: write kind: KIND_CPU in instance_group")
        self.batched = int(config["max_batch_size"]) > 0
        core = shared_core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        properties = compile_properties(config, capabilities)
        self.emulated = properties["INFERENCE_PRECISION_HINT"] == "bf16" and "BF16" not in capabilities
        model = core.read_model(model_path(config, instance["model_repository"], instance["model_version"]))
        check_side("input", config["input"], model.inputs, self.batched)
        check_side("output", config["output"], model.outputs, self.batched)
        if self.batched:
            model.reshape({tensor.any_name: one_row(tensor.partial_shape) for tensor in model.inputs})
        compiled = core.compile_model(model, "CPU", properties)
        self.precision = executed(compiled, properties["INFERENCE_PRECISION_HINT"])
        self.inputs = {tensor.any_name: tensor.partial_shape for tensor in compiled.inputs}
        streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if self.batched else 1
        self._requests = [compiled.create_infer_request() for _ in range(streams)]
        self.description = (
            f"{self.precision}, OpenVINO {ov.__version__.partition('-')[0]}, "
            f"{compiled.get_property('INFERENCE_NUM_THREADS')} threads, {streams} rows at a time"
        )

    def __call__(self, feeds: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
        """The outputs `names` for the inputs `feeds`. Raises ValueError for inputs that do not fit."""
        wanted = list(names)
        parts = self._rows(feeds)
        outputs: dict[str, Array] = {}
        for first in range(0, len(parts), len(self._requests)):
            running = list(zip(self._requests, parts[first:], strict=False))
            for request, part in running:
                request.start_async(part, share_inputs=True)
            failures = [failure for request, _ in running if (failure := _wait(request))]
            if failures:
                raise failures[0]
            for row, (request, _) in enumerate(running, start=first):
                self._take(request, wanted, outputs, row, len(parts))
        return outputs

    def _rows(self, feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Views of the inputs of each run: of each row, or of everything where there is no batch axis."""
        if feeds.keys() != self.inputs.keys():
            raise ValueError(f"inputs are {sorted(feeds)}; needed are {sorted(self.inputs)}")
        parts = [dict(feeds)]
        if self.batched:
            counts = {len(array) for array in feeds.values()}
            if len(counts) != 1 or 0 in counts:
                raise ValueError(f"inputs have {sorted(counts)} rows; all must have the same, one or more")
            parts = [{name: array[i : i + 1] for name, array in feeds.items()} for i in range(counts.pop())]
        for name, shape in self.inputs.items():
            if not shape.compatible(ov.PartialShape(parts[0][name].shape)):
                given = list(parts[0][name].shape)
                raise ValueError(f"input '{name}' has {given} {'in a row' * self.batched}; the file takes {shape}")
        return parts

    def _take(self, request: ov.InferRequest, names: list[str], outputs: dict[str, Array], row: int, rows: int) -> None:
        """Copy a row's results to their place: the memory of the request is overwritten by its next row."""
        for name in names:
            value = request.get_tensor(name).data
            if not self.batched:
                outputs[name] = value.copy()
                continue
            if row == 0:
                outputs[name] = np.empty((rows, *value.shape[1:]), value.dtype)
            outputs[name][row] = value[0]


def _wait(request: ov.InferRequest) -> RuntimeError | None:
    """Every request has to end before the memory of the inputs goes, so a failure is returned, not raised."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def model_path(config: Json, repository: str, version: str) -> str:
    """The file that the config names. Raises ValueError if it is not there."""
    path = os.path.join(repository, version, config.get("default_model_filename") or "model.xml")
    if not os.path.exists(path):
        raise ValueError(f"there is no file {path}")
    return path


def compile_properties(config: Json, capabilities: Sequence[str]) -> dict[str, str]:
    """OpenVINO's properties for a config's parameters.

    Float32 is set explicitly: on a CPU with bf16, OpenVINO would choose bf16.

    Raises:
        ValueError: an unknown parameter or value, or bf16 on a CPU without it.
    """
    given = {key: value["string_value"].strip() for key, value in config.get("parameters", {}).items()}
    if unknown := sorted(set(given) - set(PARAMETERS)):
        raise ValueError(f"unknown parameters {unknown}; known are {list(PARAMETERS)}")
    for key, text in given.items():
        _check_value(key, text)
    properties = {key: given[key].upper() for key in PROPERTIES if key in given}
    if "NUM_STREAMS" not in given:
        properties.setdefault("PERFORMANCE_HINT", "LATENCY")
    bf16 = PRECISION in given
    if bf16 and "BF16" not in capabilities and not YES_NO[given.get(EMULATION, "no").lower()]:
        raise ValueError(
            f"parameter '{PRECISION}' asks for bf16, which this CPU has not (OpenVINO finds {list(capabilities)}): "
            f"emulated it is about ten times slower than float32. Take '{PRECISION}' out, or, to compare images, set "
            f"'{EMULATION}' to YES"
        )
    return properties | {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}


def executed(compiled: ov.CompiledModel, asked: str) -> str:
    """The precision that OpenVINO has chosen. Raises ValueError if it is not the requested one.

    A CPU without AVX-512 cannot even emulate bf16: OpenVINO takes the hint there, and computes float32.
    """
    precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    if precision != asked:
        raise ValueError(
            f"parameter '{PRECISION}' asks for {asked}, but OpenVINO computes {precision} on this CPU all the same: "
            "take it out"
        )
    return precision


def _check_value(key: str, text: str) -> None:
    allowed: Callable[[str], bool] = str.isdecimal
    what = "a whole number"
    if key == "NUM_STREAMS":
        allowed, what = (lambda given: given.isdecimal() or given.upper() in ("AUTO", "NUMA")), "a number, AUTO or NUMA"
    elif key == "PERFORMANCE_HINT":
        allowed, what = (lambda given: given.upper() in HINTS), ", ".join(HINTS)
    elif key == PRECISION:  # Triton's own backend does not know the value NO
        allowed, what = (lambda given: given.lower() == "yes"), "YES, or left out for float32"
    elif key not in PROPERTIES:
        allowed, what = (lambda given: given.lower() in YES_NO), "YES or NO"
    if not allowed(text):
        raise ValueError(f"parameter '{key}' is '{text}'; it must be {what}")


def check_side(side: str, declared: list[Json], present: Sequence[Any], batched: bool) -> None:
    """Compare tensors by name, type and shape. Raises ValueError with what the file has."""
    by_name = {tensor.any_name: tensor for tensor in present}
    names = sorted(tensor["name"] for tensor in declared)
    # Outputs may be left out of a config; an input that the file needs may not.
    if (side == "input" and names != sorted(by_name)) or not set(names) <= set(by_name):
        raise ValueError(f"the config names the {side}s {names}, but the file has {sorted(by_name)}")
    for tensor in declared:
        name, kind, port = tensor["name"], tensor["data_type"], by_name[tensor["name"]]
        if TYPES.get(kind) != port.element_type.get_type_name():
            there = port.element_type.get_type_name()
            raise ValueError(f"{side} '{name}' is {kind} in the config and {there} in the file")
        dims = [int(size) for size in tensor.get("reshape", {"shape": tensor["dims"]}).get("shape", [])]
        dims = [-1, *dims] if batched else dims
        shape = port.partial_shape
        if not shape.compatible(ov.PartialShape(dims)) or (batched and not shape[0].is_dynamic):
            raise ValueError(f"{side} '{name}' has shape {dims} in the config and {shape} in the file")


def one_row(shape: ov.PartialShape) -> ov.PartialShape:
    """The shape with a batch of one."""
    return ov.PartialShape([1, *list(shape)[1:]])
