"""Memory of a server's processes, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path

from server.process import TritonServer


def processes(server: TritonServer) -> dict[str, dict[str, int]]:
    """MB by process: rss now (shared libraries and shared memory counted in each), and its peak."""
    return {name: resident(pid) for pid, name in {server.pid: "tritonserver", **server.stubs()}.items()}


def resident(pid: int) -> dict[str, int]:
    """VmRSS and VmHWM of a process."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: round(int(fields[name].split()[0]) / 1024) for key, name in (("rss", "VmRSS"), ("peak", "VmHWM"))}
