"""How much of the shared memory is left through which Triton takes answers. Knows Triton by one module's name only."""

import os
import sys

FOLDER = "/dev/shm"
MARGIN = 32 * 2**20
"""Left for other answers of the same moment; the largest has 16 MB."""


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
    """Whether `size` bytes fit even if the free memory of the pool lies in pieces."""
    return size + MARGIN <= _left()


def _left() -> int:
    status = os.statvfs(FOLDER)
    return status.f_bavail * status.f_frsize
