"""A config.pbtxt to the program that it names. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch_compiled import compiled_file
from torch_program import Program, Record, read_record
from torch_steps import CONDITION, Steps, check_program, inputs, outputs

Json = dict[str, Any]
BUCKETS = "1,2,4,8,16,32,64"
BOOLEANS = {"0": False, "false": False, "1": True, "true": True}
PARAMETERS = ("batch_buckets", "channels_last")


def load(config: Json, instance: Mapping[str, str]) -> Program | Steps:
    """The program of a config, on the device of an instance; with several steps a call if the config has coefficients.

    Raises ValueError, with the reason, for what does not fit.
    """
    name = config.get("default_model_filename") or "model.pt2"
    path = Path(instance["model_repository"], instance["model_version"], name)
    check_tensors(config, read_record(path))
    buckets, channels_last = parameters(config)
    on_gpu = instance["model_instance_kind"] == "GPU"
    device = torch.device("cuda", int(instance["model_instance_device_id"])) if on_gpu else torch.device("cpu")
    kind = Steps if has_steps(config) else Program
    try:
        return kind(path, device, buckets, channels_last=channels_last)
    except RuntimeError as error:
        if (compiled := compiled_file(path)).is_file():
            raise RuntimeError(f"{error}; without {compiled} the program runs operation by operation") from error
        raise


def has_steps(config: Json) -> bool:
    """Whether the model of a config does the steps of a sampler: it takes their coefficients."""
    return any(tensor["name"] == "coefficients" for tensor in config["input"])


def parameters(config: Json) -> tuple[list[int], bool]:
    """batch_buckets, no larger than max_batch_size, and channels_last. Raises ValueError naming what is wrong."""
    given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    if unknown := sorted(set(given) - set(PARAMETERS)):
        raise ValueError(f"unknown parameters {unknown}; known are {list(PARAMETERS)}")
    most, text = int(config["max_batch_size"]), given.get("batch_buckets", BUCKETS)
    sizes = [size.strip() for size in text.split(",")]
    if most < 1 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(
            f"batch_buckets is {text!r} and max_batch_size {most}: needed are batch sizes with commas "
            f"({BUCKETS!r}) and a max_batch_size of 1 or more"
        )
    flag = given.get("channels_last", "true").strip().lower()
    if flag not in BOOLEANS:
        raise ValueError(f"channels_last is {flag!r}; it must be true or false")
    return sorted({min(int(size), most) for size in sizes}), BOOLEANS[flag]


def check_tensors(config: Json, record: Record) -> None:
    """Compare every tensor by name, type and shape, inputs with inputs. Raises ValueError with both sides."""
    if has_steps(config):
        check_program(record)
        present, owner = (
            {"input": inputs(-1, CONDITION in record.inputs), "output": outputs(-1)},
            "several steps a call have",
        )
    else:
        present, owner = {"input": record.inputs, "output": (record.output,)}, "the file has"
    for side, specs in present.items():
        declared = [(t["name"], t["data_type"], [int(dim) for dim in t["dims"]]) for t in config[side]]
        needed = [(t.name, triton_type(t.dtype), list(t.shape)) for t in specs]
        if sorted(declared) != sorted(needed):
            raise ValueError(f"the config declares {side}s {declared}, and {owner} {needed}")


def triton_type(dtype: str) -> str:
    """TYPE_FP32 of float32, TYPE_INT32 of int32."""
    return "TYPE_" + dtype.upper().replace("FLOAT", "FP")
