"""From a config.pbtxt to a running plan: which file, which TensorRT, which CUDA graphs. Knows nothing of Triton.

Experimental: not yet run on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cuda_device import Device
from plan_engine import Engine, PlanError, TensorInfo, describe, deserialize

Json = dict[str, Any]
TYPES = {"TYPE_FP32": "float32", "TYPE_FP16": "float16", "TYPE_INT64": "int64", "TYPE_INT32": "int32"}
TYPES |= {"TYPE_INT8": "int8", "TYPE_UINT8": "uint8", "TYPE_BOOL": "bool"}

INSTALL = "pip install --group server-tensorrt, or server-tensorrt-rtx for an RTX GPU; or use a Triton container"


def load(config: Json, args: Mapping[str, str], warn: Callable[[str], None]) -> Engine:
    """The engine of a config on the GPU of an instance. Raises PlanError, DeviceError, ImportError with the reason."""
    if int(config["max_batch_size"]) < 1 or args["model_instance_kind"] != "GPU":
        raise PlanError(
            f"max_batch_size is {config['max_batch_size']} and the instance KIND_{args['model_instance_kind']}; "
            "a plan runs here with 1 or more, on KIND_GPU"
        )
    modules, cuda = runtimes()
    device = Device(cuda, int(args["model_instance_device_id"]))
    path = plan_path(config, Path(args["model_repository"], args["model_version"]), device.capability)
    trt, plan = open_plan(modules, path)
    check_tensors(config, describe(trt, plan))
    engine = Engine(trt, plan, device, graph_sizes(config), warn)
    engine.name = (
        f"{path.name} with {trt.__name__} {trt.__version__} on {device.name}, CUDA graphs for {list(engine.sizes)} rows"
    )
    return engine


def runtimes() -> tuple[list[Any], Any]:
    """The installed TensorRT packages, the full one first, and the CUDA runtime. Raises ImportError."""
    packages, reasons = [], []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            packages.append(importlib.import_module(name))
        except ImportError as error:
            reasons.append(str(error))
    if not packages:
        raise ImportError(f"this server's Python has no working TensorRT ({'; '.join(reasons)}): {INSTALL}")
    try:
        return packages, importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ImportError(f"this server's Python has no working cuda-bindings ({error}): {INSTALL}") from error


def plan_path(config: Json, folder: Path, capability: str) -> Path:
    """The file that the config names for GPUs of this capability. Raises PlanError if it is missing."""
    default = config.get("default_model_filename") or "model.plan"
    path = folder / str(config.get("cc_model_filenames", {}).get(capability, default))
    if not path.is_file():
        raise PlanError(f"there is no file {path}, which the config names for GPUs of compute capability {capability}")
    return path


def open_plan(modules: Sequence[Any], path: Path) -> tuple[Any, Any]:
    """The TensorRT package that accepts the plan, and the engine. Raises PlanError with the reasons of all packages."""
    reasons = []
    for trt in modules:
        try:
            return trt, deserialize(trt, path.read_bytes())
        except PlanError as error:
            reasons.append(str(error))
    raise PlanError(
        f"{path}: {'; '.join(reasons)}. A plan runs with the TensorRT version and on the kind of GPU that it was "
        "built for: build it again here with `python -m export repository DIR --tensorrt PRECISION`, "
        "or install that version"
    )


def graph_sizes(config: Json) -> dict[int, int]:
    """Rows of each CUDA graph and the fewest that run in it; without `graph_spec` those of Triton's own backend."""
    cuda, most = config.get("optimization", {}).get("cuda", {}), int(config["max_batch_size"])
    if not cuda.get("graphs"):
        return {}
    if specs := cuda.get("graph_spec"):
        return {int(spec["batch_size"]): int((spec.get("graph_lower_bound") or spec)["batch_size"]) for spec in specs}
    preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [2, 3, 4, 6, 8, 12, 16])
    return {size: size for size in {1, *map(int, preferred), most} if size <= most}


def check_tensors(config: Json, tensors: Sequence[TensorInfo]) -> None:
    """Compare every tensor by name, type and shape, and the batch. Raises PlanError with both sides."""
    for side, is_input in (("input", True), ("output", False)):
        declared = {t["name"]: (TYPES.get(t["data_type"]), [int(d) for d in t["dims"]]) for t in config[side]}
        present = {t.name: (t.dtype.name, list(t.shape)) for t in tensors if t.is_input == is_input}
        if declared != present:
            raise PlanError(f"the config declares {side}s {declared}, and the plan has {present}")
    low, high, most = tensors[0].min_rows, tensors[0].max_rows, int(config["max_batch_size"])
    if low > 1 or high < most:
        raise PlanError(f"the plan takes {low} to {high} rows, and Triton sends 1 to {most}: build it for those")
