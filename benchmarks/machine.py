"""What figures were taken on: processor, versions, date, and what else ran."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from export.executed import openvino_core

PACKAGES = (
    "torch", "monai", "onnxruntime", "openvino", "nvidia-pytriton", "tritonclient", "diffusers", "litserve", "numpy",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """As JSON. load: of the last 1, 5 and 15 minutes, so call it before anything is measured."""
    info = _first_processor()
    flags = info.get("flags", "").split()
    return {
        "processor": info.get("model name", platform.machine()),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def has_bf16() -> bool:
    """Whether OpenVINO finds bf16 in this CPU, so that it is not emulated."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def elsewhere(processes: Iterable[int]) -> float:
    """CPU seconds since the start of the machine that went to others than `processes`: other work, or the hypervisor.

    Two readings around a measurement, over its seconds and the cores, say how much it was disturbed.
    """
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    stats = [Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split() for pid in processes]
    own = sum(int(stat[11]) + int(stat[12]) for stat in stats)
    return (user + nice + system + irq + softirq + steal - own) / os.sysconf("SC_CLK_TCK")


def _first_processor() -> dict[str, str]:
    path, info = Path("/proc/cpuinfo"), {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        info[key.strip()] = value.strip()
    return info


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
