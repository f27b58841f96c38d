"""Processes of a running server, and what a server has in shared memory or left there: Linux's /proc and /dev/shm."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def region_prefix() -> str:
    """A new prefix for the names of shared-memory regions that says which process answers for them."""
    return f"{_family()}{os.getpid()}_{uuid.uuid4().hex[:12]}_"


def _family() -> str:
    # Containers may share /dev/shm and not see each other's processes: a process id means something in its namespace.
    return f"brats_ldm_{Path('/proc/self/ns/pid').stat().st_ino}_"


def private_folder(prefix: str) -> Path:
    """A new folder for this user alone, removed with the regions of that prefix.

    It is in shared memory, as its path needs to be plain, and whatever cleans temporary folders leaves it alone.
    """
    folder = SHARED_MEMORY / f"{prefix}folder"
    folder.mkdir(mode=0o700)
    return folder


def remove_regions(prefix: str) -> None:
    """Remove the regions with this prefix: a stub that was killed cannot remove its own, and nobody else does."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        _remove(region)


def remove_orphaned_regions() -> None:
    """Remove the regions of launchers that were killed; those of others are left alone."""
    for region in SHARED_MEMORY.glob(f"{_family()}*"):
        owner = region.name.removeprefix(_family()).partition("_")[0]
        if not Path("/proc", owner).exists():
            _remove(region)


def _remove(region: Path) -> None:
    if region.is_dir() and not region.is_symlink():
        shutil.rmtree(region, ignore_errors=True)
    else:
        region.unlink(missing_ok=True)


def children(parent: int) -> dict[int, bool]:
    """Process ids of the children of a process, each with whether it lives (and is no zombie)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        state, its_parent, _ = _state(stat)
        if its_parent == parent:
            found[int(stat.parent.name)] = state not in "ZX"
    return found


def group_alive(group: int) -> bool:
    """Whether the process group has a member that is no zombie."""
    states = (_state(stat) for stat in Path("/proc").glob("[0-9]*/stat"))
    return any(its_group == group and state not in "ZX" for state, _, its_group in states)


def alive(process: int) -> bool:
    """Whether the process is there, and no zombie."""
    return _state(Path("/proc", str(process), "stat"))[0] not in "ZX"


def _state(stat: Path) -> tuple[str, int, int]:
    """State, parent and process group; X where the process has just ended."""
    try:
        state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return "X", 0, 0
    return state, int(parent), int(group)


def model_of(stub: int) -> str:
    """The model instance that a stub process runs, such as unet_0_0; empty where it cannot be told."""
    try:
        arguments = Path("/proc", str(stub), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    # stub, path of model.py, five of shared memory and parent, handle, name, ...
    is_stub = arguments[0].endswith(b"triton_python_backend_stub") and len(arguments) > 8
    return arguments[8].decode(errors="replace") if is_stub else ""
