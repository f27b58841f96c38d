"""The TensorRT releases and the GPUs of a machine, which decide what plans it runs. Works where there is neither."""

import importlib
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """The name that nvidia-smi shows; the compute capability, such as "9.0"."""

    name: str
    capability: str


@dataclass(frozen=True)
class Machine:
    """versions: TensorRT by package, e.g. {"tensorrt": "10.13.2.6"}. Both may be empty."""

    versions: dict[str, str]
    gpus: tuple[Gpu, ...]


def this_machine() -> Machine:
    """The TensorRT packages and GPUs of this machine."""
    versions = {package: _version(package) for package in ("tensorrt", "tensorrt_rtx")}
    return Machine({package: version for package, version in versions.items() if version}, gpus())


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that the NVIDIA driver shows; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = [line.rsplit(",", 1) for line in shown.splitlines() if "," in line]
    return tuple(Gpu(name.strip(), capability.strip()) for name, capability in lines)


def _version(package: str) -> str | None:
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, OSError, AttributeError):  # it, or one of its libraries, is missing
        return None
