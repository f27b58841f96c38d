"""Files that are whole or absent: they are written under a temporary name and then renamed.

Standard library only. Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

#: The temporary names of `whole_file`, for `Path.glob`. A process that is killed leaves its temporary files behind.
TEMPORARY = f".*.{'[0-9a-f]' * 8}.tmp"

#: The page of `brats-ldm report`, which may lie beside any slices.
REPORT = "report.html"


@contextlib.contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A new, empty file beside `path`. Write to it within the block; after the block it has the name `path`.

    Nobody can read half of the file, and two processes may write the same file at the same time. After an error there
    is what was at `path` before, and no temporary file.

    sync: the file also survives a power cut.

    Raises:
        OSError: the file could not be written; the error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _about(path, temporary):
            temporary.touch(exist_ok=False)
            yield temporary
            if sync:
                to_disk(temporary)
            os.replace(temporary, path)
            if sync:
                to_disk(path.parent)
    finally:
        # Still there after an error, and where both are names of one file: then Linux renames nothing.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in the block names `path`. The error of a write to a full disk names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _about(path: Path, temporary: Path) -> Iterator[None]:
    """As `naming`, but leaves errors about other files alone."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and os.fspath(error.filename) != str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, would survive a power cut. Not on Windows."""
    if os.name == "nt":  # which opens no folder and syncs no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot say
            raise
    finally:
        os.close(descriptor)
