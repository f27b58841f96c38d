"""Folders in which files are made, beside the place where they go: what has its final name is whole.

A workplace is locked while its process lives, so the next run sees which ones a killed process has left. Any number of
processes can work in one folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..files import TEMPORARY, naming, to_disk

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = "lock"
_MANY = 16  # files: for more, one call for the whole system is quicker than one for each


@contextlib.contextmanager
def workplace(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder `.NAME.xxxxxxxx.tmp` in `folder`, which is gone after the block."""
    place, lock = _claimed(folder, name)
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):
            _empty(place)
        lock.close()
        shutil.rmtree(place, ignore_errors=True)


def _claimed(folder: Path, name: str) -> tuple[Path, BinaryIO]:
    """A new workplace and its lock. `tidy` of another process may take it away before it is locked: then another."""
    while True:
        place = folder / f".{name}.{secrets.token_hex(4)}.tmp"
        with naming(folder):
            place.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):
            lock = open(place / _LOCK, "xb")  # noqa: SIM115 - the caller closes it
            if _lock(lock) and (place / _LOCK).exists():
                return place, lock
            lock.close()


def _lock(file: BinaryIO) -> bool:
    """Whether this process now holds the lock; also true where the file system has no locks: a run can go on there."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def tidy(folder: Path) -> list[str]:
    """Remove the workplaces of dead processes; returns the names of those whose processes live."""
    return [place.name for place in folder.glob(TEMPORARY) if not _removed(place)]


def _removed(place: Path) -> bool:
    try:
        if fcntl is None:
            (place / _LOCK).unlink()  # which Windows refuses while a process has it open
            _empty(place)
        else:
            with open(place / _LOCK, "r+b") as lock:
                if not _lock(lock):
                    return False
                _empty(place)
        shutil.rmtree(place, ignore_errors=True)
    except FileNotFoundError:  # no lock: it is empty, or its process has yet to lock it and will make another
        with contextlib.suppress(OSError):
            place.rmdir()
    except NotADirectoryError:  # a file of `whole_file`
        place.unlink(missing_ok=True)
    except PermissionError:
        return False
    return True


def _empty(place: Path) -> None:
    """Remove all but the lock, which goes last: after a kill on the way, the next run can still tell."""
    for path in place.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def put_file(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, also after a power cut."""
    with workplace(path.parent, path.name) as place, naming(path):
        (place / path.name).write_bytes(content)
        to_disk(place / path.name)
        os.replace(place / path.name, path)
        to_disk(path.parent)


def put(made: Path, path: Path) -> None:
    """Give a file or folder from a workplace its final name, in the place of what has that name."""
    with naming(path):
        while True:
            try:
                os.replace(made, path)
                return
            except OSError as error:
                # Linux replaces empty folders only. Another process may be doing the same now: hence the loop.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES):
                    raise
                if not path.exists():
                    raise
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, made.with_name(f"{made.name}.before.{secrets.token_hex(4)}"))


def all_to_disk(files: Sequence[Path]) -> None:
    """Wait until files would survive a power cut."""
    if len(files) > _MANY and hasattr(os, "sync"):
        os.sync()
        return
    for file in files:
        to_disk(file)
