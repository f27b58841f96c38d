"""The machine of a measurement: processor, versions, date, other work, and the memory of processes."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from export.parity.record import versions
from export.processor import instructions, processor_name
from server.regions import SHARED_MEMORY

if TYPE_CHECKING:
    from server.process import TritonServer

PACKAGES = (
    "torch", "monai", "onnxruntime", "openvino", "nvidia-pytriton", "tritonclient", "diffusers", "litserve", "numpy",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
MB = 1 << 20


def describe() -> dict[str, Any]:
    """As JSON. load: of the last 1, 5 and 15 minutes, so call it before anything is measured."""
    here = instructions()
    return {
        "processor": processor_name(),
        "instructions": [name for name in INSTRUCTIONS if name in here],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def has_bf16() -> bool:
    """Whether OpenVINO finds bf16 in this CPU. Elsewhere it is emulated."""
    from export.executed import openvino_core  # a bare GPU machine has no OpenVINO

    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def elsewhere(processes: Iterable[int]) -> float:
    """CPU seconds since the start of the machine that went to others than `processes`: other work, or the hypervisor.

    Two readings around a measurement, over its seconds and the cores, say how much it was disturbed.
    """
    every = psutil.cpu_times()
    busy = every.user + every.nice + every.system + every.irq + every.softirq + every.steal
    ours = [psutil.Process(pid).cpu_times() for pid in processes]
    return float(busy - sum(times.user + times.system for times in ours))


def server_memory(server: TritonServer) -> dict[str, dict[str, int]]:
    """MB by process: rss now (shared libraries and shared memory counted in each), and its peak."""
    return {name: resident(pid) for pid, name in {server.pid: "tritonserver", **server.stubs()}.items()}


def resident(pid: int) -> dict[str, int]:
    """MB of a process now, and at most. The peak is Linux's VmHWM, which psutil does not read."""
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc", str(pid), "status").read_text(), re.MULTILINE)
    assert peak
    return {"rss": round(psutil.Process(pid).memory_info().rss / MB), "peak": round(int(peak[1]) / 1024)}


def proportional(pid: int) -> int:
    """Bytes of a process where what several map is shared out among them: the sum over processes counts all once."""
    return int(psutil.Process(pid).memory_full_info().pss)


def shared_bytes(server: TritonServer) -> int:
    """Bytes in /dev/shm of this server; others may run on this machine."""
    return sum(region.stat().st_blocks * 512 for region in SHARED_MEMORY.glob(f"{server.shm_prefix}*"))
