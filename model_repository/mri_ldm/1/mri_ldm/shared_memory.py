"""How much of the shared memory is left through which Triton takes answers. Knows Triton by one module's name only."""

import os
import sys

FOLDER = "/dev/shm"
MARGIN = 32 * 2**20
"""For what other answers may take at the same moment: 16 MB is the largest."""


class NoRoom(Exception):
    """An answer is larger than what is left."""


def check_fits(size: int) -> None:
    """Raise NoRoom where `size` bytes are more than is left, in Triton's pool or for it to grow by."""
    pool = getattr(sys.modules.get("c_python_backend_utils"), "shared_memory", None)
    if pool is not None and size > (left := max(int(pool.free_memory()), _left())):
        raise NoRoom(
            f"it has {size / 1e6:.1f} MB, and {left / 1e6:.1f} MB of shared memory are left in one piece: ask for "
            f"fewer rows, or give the server more of it ({FOLDER}; docker's --shm-size)"
        )


def surely_fits(size: int) -> bool:
    """Whether `size` bytes fit whatever the pool looks like, in which what is free may lie in pieces."""
    return size + MARGIN <= _left()


def _left() -> int:
    found = os.statvfs(FOLDER)
    return found.f_bavail * found.f_frsize
