"""Checks what a machine needs before a server starts: shared memory, temporary files, open files."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

from server.errors import ServerError

SHARED_MEMORY_BYTES = 24 * 2**20
"""For a request of 64 rows, the largest: 22 MB were seen, 16 of them the answer."""
TEMPORARY_BYTES = 16 * 2**20
"""The copy of the python backend takes 6 MB; the rest is for the log."""
DESCRIPTORS = 128
"""An idle server has 68 open, and each connection takes one more."""


def check_shared_memory(folder: Path, needed: int = SHARED_MEMORY_BYTES) -> None:
    """Raise ServerError where the folder of shared memory cannot be written or has less than `needed` bytes left."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ServerError(f"cannot write to {folder}, where Triton's processes exchange tensors: make it writable")
    if (left := shutil.disk_usage(folder).free) < needed:
        raise ServerError(
            f"{folder} has {_megabytes(left)} left, and a server needs {_megabytes(needed)}: delete what fills it, or "
            f"enlarge it (docker run --shm-size=1g; elsewhere mount -o remount,size=1g {folder})"
        )


def check_temporary(needed: int = TEMPORARY_BYTES) -> None:
    """Raise ServerError where no folder of temporary files can be written, or it has less than `needed` bytes left."""
    if tempfile.tempdir is not None and not os.path.isdir(tempfile.tempdir):
        tempfile.tempdir = None  # it was there once, and Python would go on with it
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ServerError(f"{error.strerror}: make room in one of them, or set TMPDIR to another folder") from error
    if (left := shutil.disk_usage(folder).free) < needed:
        raise ServerError(
            f"{folder}, for temporary files, has {_megabytes(left)} left, and a server needs {_megabytes(needed)}: "
            "delete what fills it, or set TMPDIR to another folder"
        )


def check_runs_programs(program: Path) -> None:
    """Raise ServerError where a program that was copied cannot run, which is so on what is mounted noexec."""
    if not os.access(program, os.X_OK):
        raise ServerError(
            f"programs cannot run in {program.parent} (mounted noexec?), and Triton's stub must: "
            "set TMPDIR to a folder where they can, e.g. TMPDIR=/var/tmp"
        )


def check_descriptors(limit: int | None = None) -> None:
    """Raise ServerError where too few files may be open at once; `limit`: None is this process's."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if limit != resource.RLIM_INFINITY and limit < DESCRIPTORS:
        raise ServerError(
            f"{limit} files may be open at once (ulimit -n), and a server needs {DESCRIPTORS}, and one more for each "
            "connection: ulimit -n 1024"
        )


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.0f} MB"
