"""Checks whether an answer fits into the shared memory through which Triton takes it. Imports nothing of Triton."""

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = "/dev/shm"
MARGIN = 32 * 2**20
"""Reserve for other answers at the same time; the largest has 21 MB."""


class NoRoom(Exception):
    """There is no room for an answer in shared memory."""


def size_of(tensor: NDArray[Any]) -> int:
    """Bytes of a tensor in an answer, where each string follows its length."""
    return sum(4 + len(text) for text in tensor.flat) if tensor.dtype == np.object_ else tensor.nbytes


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
