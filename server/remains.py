"""Processes of a running server, and shared memory that a server has left behind: Linux's /proc and /dev/shm."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def region_prefix() -> str:
    """A new prefix for the names of shared-memory regions that says which process answers for them."""
    return f"{_family()}{os.getpid()}_{uuid.uuid4().hex[:12]}_"


def _family() -> str:
    # Containers may share /dev/shm and not see each other's processes: a process id means something in its namespace.
    return f"brats_ldm_{Path('/proc/self/ns/pid').stat().st_ino}_"


def remove_regions(prefix: str) -> None:
    """Remove the regions with this prefix: a stub that was killed cannot remove its own, and nobody else does."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_orphaned_regions() -> None:
    """Remove the regions of launchers that were killed; those of others are left alone."""
    for region in SHARED_MEMORY.glob(f"{_family()}*"):
        owner = region.name.removeprefix(_family()).partition("_")[0]
        if not Path("/proc", owner).exists():
            region.unlink(missing_ok=True)


def children(parent: int) -> dict[int, bool]:
    """Process ids of the children of a process, each with whether it lives (and is no zombie)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(its_parent) == parent:
            found[int(stat.parent.name)] = state not in "ZX"
    return found


def model_of(stub: int) -> str:
    """The model instance that a stub process runs, such as unet_0_0; empty where it cannot be told."""
    try:
        arguments = Path("/proc", str(stub), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return arguments[-2].decode(errors="replace") if len(arguments) > 2 and b"stub" in arguments[0] else ""
