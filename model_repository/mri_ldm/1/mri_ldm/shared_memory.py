"""Checks whether an answer fits into the shared memory through which Triton takes it. Imports nothing of Triton."""

import os
import sys

FOLDER = "/dev/shm"
MARGIN = 32 * 2**20
"""Reserve for other answers at the same time; the largest has 16 MB."""


class NoRoom(Exception):
    """There is no room for an answer in shared memory."""


def check_fits(size: int) -> None:
    """Raise NoRoom if `size` bytes fit neither into Triton's pool nor into the memory by which it can grow."""
    pool = getattr(sys.modules.get("c_python_backend_utils"), "shared_memory", None)
    if pool is not None and size > (left := max(int(pool.free_memory()), _left())):
        raise NoRoom(
            f"it has {size / 1e6:.1f} MB, and {left / 1e6:.1f} MB of shared memory are left in one piece: ask for "
            f"fewer rows, or give the server more of it ({FOLDER}; docker's --shm-size)"
        )


def surely_fits(size: int) -> bool:
    """Whether `size` bytes fit even if the free memory of the pool lies in pieces."""
    return size + MARGIN <= _left()


def _left() -> int:
    status = os.statvfs(FOLDER)
    return status.f_bavail * status.f_frsize
