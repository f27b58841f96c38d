"""Where figures were measured: the part that the records of `parity` and `gate` share."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from export.processor import instructions, processor_name
from export.tensorrt.machine import gpus

PACKAGES = ("torch", "monai", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "numpy")
VECTORS = ("avx", "amx", "asimd", "sve", "bf16")
"""How the names of the instructions begin that decide how a network is computed."""


def machine_record() -> dict[str, Any]:
    """This machine, its software and the date, as JSON."""
    return {
        "processor": processor_name(),
        "instructions": sorted(name for name in instructions() if name.startswith(VECTORS)),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [f"{gpu.name} ({gpu.capability})" for gpu in gpus()],
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
