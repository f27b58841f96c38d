"""Shared-memory regions in /dev/shm: how a server names its regions, and how leftover regions are removed."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def region_prefix() -> str:
    """A new prefix for the names of shared-memory regions; it contains the process that owns them."""
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
    """Remove the regions with this prefix: a stub that was killed has not removed its regions."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        _remove(region)


def remove_orphaned_regions() -> None:
    """Remove the regions of launchers that were killed. Regions of running launchers stay."""
    for region in SHARED_MEMORY.glob(f"{_family()}*"):
        owner = region.name.removeprefix(_family()).partition("_")[0]
        if not Path("/proc", owner).exists():
            _remove(region)


def _remove(region: Path) -> None:
    if region.is_dir() and not region.is_symlink():
        shutil.rmtree(region, ignore_errors=True)
    else:
        region.unlink(missing_ok=True)
