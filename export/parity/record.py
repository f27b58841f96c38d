"""The records of `parity` and `gate`: what they share, above all where the figures were measured."""

import json
import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from export.processor import instructions, processor_name
from export.tensorrt.machine import gpus
from training.files import write_text

PACKAGES = ("torch", "monai", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "numpy")
VECTORS = ("avx", "amx", "asimd", "sve", "bf16")
"""How the names of the instructions begin that decide how a network is computed."""


def write_record(path: Path, setting: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Write figures as JSON, with the machine on which they were measured.

    Raises:
        NotWritten: the disk is full, or the like.
    """
    content = setting | {"machine": machine_record(), "results": results}
    write_text(path, json.dumps(content, indent=2) + "\n")


def machine_record() -> dict[str, Any]:
    """This machine, its software and the date, as JSON."""
    return {
        "processor": processor_name(),
        "instructions": sorted(name for name in instructions() if name.startswith(VECTORS)),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [f"{gpu.name} ({gpu.capability})" for gpu in gpus()],
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    return {name: number for name in packages if (number := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
