"""Memory of a server's processes, from Linux's /proc."""

from __future__ import annotations

import re
from pathlib import Path

from server.process import TritonServer
from server.regions import SHARED_MEMORY


def processes(server: TritonServer) -> dict[str, dict[str, int]]:
    """MB by process: rss now (shared libraries and shared memory counted in each), and its peak."""
    return {name: resident(pid) for pid, name in {server.pid: "tritonserver", **server.stubs()}.items()}


def resident(pid: int) -> dict[str, int]:
    """VmRSS and VmHWM of a process."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: round(int(fields[name].split()[0]) / 1024) for key, name in (("rss", "VmRSS"), ("peak", "VmHWM"))}


def proportional(pid: int) -> int:
    """Bytes of a process where what several map is shared out among them: the sum over processes counts all once."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc", str(pid), "smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def shared_bytes(server: TritonServer) -> int:
    """Bytes in /dev/shm of this server; others may run on this machine."""
    return sum(region.stat().st_blocks * 512 for region in SHARED_MEMORY.glob(f"{server.shm_prefix}*"))
